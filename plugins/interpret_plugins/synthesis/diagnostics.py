"""Convergence of Markov chains: rank-normalised split R-hat and effective sample size.

Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, "Rank-normalization, folding, and localization:
an improved R-hat for assessing convergence of MCMC". Traces are `(..., chains, draws)` in float64.
"""

import torch
from torch import Tensor

FEWEST = 4  # draws of a chain: each half needs a variance
LARGEST = 1000.0  # R-hat, also of chains that never moved


def r_hat(traces: Tensor) -> Tensor:
    """Split R-hat, `(...)`: the larger of that of the rank-normalised traces and of their folds.

    Near 1 where the chains, and the halves of each, agree; values above 1.01 tell that they do not
    yet. At most 1000, also where a chain never moved.
    """
    halves = _split(traces)
    folded = (halves - _median(halves)).abs()
    return torch.maximum(_plain(_normalised(halves)), _plain(_normalised(folded)))


def effective_sample_size(traces: Tensor) -> Tensor:
    """Bulk effective sample size of all draws together, `(...)`.

    That of the rank-normalised split chains, by Geyer's initial monotone sequence. Chains that
    never moved count as one draw.
    """
    return _effective(_normalised(_split(traces)))


def _split(traces: Tensor) -> Tensor:
    half = traces.shape[-1] // 2
    return torch.cat([traces[..., :half], traces[..., -half:]], -2)


def _median(traces: Tensor) -> Tensor:
    # The lower one of an even number: half-way, two draws would tie but for rounding.
    return traces.flatten(-2).median(-1).values[..., None, None]


def _normalised(traces: Tensor) -> Tensor:
    """Normal scores of the ranks over all draws, equal values sharing their mean rank."""
    values = traces.flatten(-2).contiguous()
    ordered = values.sort(-1).values
    first = torch.searchsorted(ordered, values)
    last = torch.searchsorted(ordered, values, right=True)
    rank = (first + last + 1).to(traces) / 2
    found: Tensor = torch.special.ndtri((rank - 0.375) / (values.shape[-1] + 0.25))
    return found.view_as(traces)


def _plain(halves: Tensor) -> Tensor:
    draws = halves.shape[-1]
    within = halves.var(-1).mean(-1)
    between = halves.mean(-1).var(-1)
    total = (draws - 1) / draws * within + between
    ratio = total / within.clamp_min(torch.finfo(within.dtype).tiny)
    found = ratio.sqrt().clamp(max=LARGEST)
    return torch.where(within > 0, found, LARGEST)


def _effective(halves: Tensor) -> Tensor:
    chains, draws = halves.shape[-2:]
    covariance = _autocovariance(halves).mean(-2)  # over chains
    within = covariance[..., 0] * draws / (draws - 1)
    total = covariance[..., 0] + halves.mean(-1).var(-1)
    moved = total > 0
    safe = torch.where(moved, total, 1.0)[..., None]
    correlation = 1 - (within[..., None] - covariance) / safe
    correlation[..., 0] = 1
    even = correlation.shape[-1] // 2 * 2
    pairs = correlation[..., 0:even:2] + correlation[..., 1:even:2]
    positive = (pairs > 0).cumprod(-1)
    monotone = (pairs * positive).cummin(-1).values * positive
    time = -1 + 2 * monotone.sum(-1)
    # as Stan: no more than what antithetic chains may gain
    time = time.clamp_min(1 / torch.log10(torch.tensor(float(chains * draws)).to(time)))
    return torch.where(moved, (chains * draws / time).clamp_min(1.0), 1.0)


def _autocovariance(values: Tensor) -> Tensor:
    """`(..., draws)`: the biased autocovariance at every lag, by the Fourier transform."""
    draws = values.shape[-1]
    centred = values - values.mean(-1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * draws)
    found: Tensor = torch.fft.irfft(spectrum.abs().square(), n=2 * draws)[..., :draws] / draws
    return found
