"""How alike two attributions are."""

import torch
from torch import Tensor
from torch.nn import functional

_WINDOW = 7


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """The rank correlation of each row, `(N,)` float64 in [-1, 1]; equal values share their rank.

    A row of one value everywhere resembles nothing (0) but another such row (1).

    Args:
        first, second: `(N, ...)`.
    """
    ranks = [_ranks(values.flatten(1).double()) for values in (first, second)]
    one, other = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    lengths = one.norm(dim=1) * other.norm(dim=1)
    both = ~(one.any(1) | other.any(1))
    alike = (one * other).sum(1) / lengths.where(lengths > 0, 1)
    return torch.where(lengths > 0, alike, both.double())


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """The mean structural similarity of each row, `(N,)` float64 in [-1, 1].

    Every picture is stretched to [0, 1] first. Windows of 7 by 7 values, or of what fits, of even
    weight; constants 0.01 and 0.03; unbiased variances; places whose window sticks out are left
    out.

    Args:
        first, second: pictures `(N, H, W)`, at least 3 by 3.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural
    Similarity".
    """
    x, y = (_stretched(picture.double()).unsqueeze(1) for picture in (first, second))
    window = min(_WINDOW, *x.shape[2:])
    window -= 1 - window % 2
    unbiased = window**2 / (window**2 - 1)

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, window, 1)

    mean_x, mean_y = mean(x), mean(y)
    var_x = unbiased * (mean(x * x) - mean_x**2)
    var_y = unbiased * (mean(y * y) - mean_y**2)
    both = unbiased * (mean(x * y) - mean_x * mean_y)
    light = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    structure = (2 * both + 0.03**2) / (var_x + var_y + 0.03**2)
    similarity: Tensor = (light * structure).flatten(1).mean(1)
    return similarity


def _ranks(values: Tensor) -> Tensor:
    ordered = values.sort(dim=1).values
    first = torch.searchsorted(ordered, values, right=False)
    last = torch.searchsorted(ordered, values, right=True)
    return (first + last - 1).double() / 2


def _stretched(pictures: Tensor) -> Tensor:
    low, high = pictures.amin((1, 2), keepdim=True), pictures.amax((1, 2), keepdim=True)
    width = high - low
    return (pictures - low) / width.where(width > 0, 1)
