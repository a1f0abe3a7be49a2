"""Functions of torch, each traced as a small network to be lowered."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchscript_blocks import LONGER, SIGNAL, Block


class Apply(nn.Module):
    """A function as a module that can be traced."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def traced(
    function: Callable[[Tensor], Tensor],
    shape: tuple[int, ...] = SIGNAL,
    other: tuple[int, ...] | None = None,
) -> Block:
    return Block(lambda: Apply(function), shape, other, forms=("trace",))


weight = torch.linspace(-1, 1, 12).reshape(4, 3).sin()
index = torch.tensor([3, 0, 0, 2])
edges = torch.linspace(-1, 1, 5)


def scattered(x: Tensor) -> Tensor:
    order = x.argsort(1)
    return torch.zeros_like(x).scatter(1, order, x) + x.gather(1, order.flip(1))


FUNCTIONS = {
    "adaptive_max_indices": traced(
        lambda x: F.adaptive_max_pool2d(x, 3, True)[0], (4, 8, 8), (4, 12, 10)
    ),
    "cosine": traced(lambda x: F.cosine_similarity(x, x.flip(1), dim=1), SIGNAL, LONGER),
    "einsum": traced(lambda x: torch.einsum("nct,cd->ndt", x, weight.to(x)), SIGNAL, LONGER),
    "index": traced(lambda x: x[:, index] * x[:, [1, 0, 1, 2], None][:, :, 0], SIGNAL, LONGER),
    "index_select": traced(lambda x: x.index_select(1, index).cumsum(-1), SIGNAL, LONGER),
    "index_put": traced(
        lambda x: x.index_put((torch.tensor(0), index), torch.ones(()).to(x)), SIGNAL, LONGER
    ),
    "index_add": traced(lambda x: x.index_add(1, index, x, alpha=2.0), SIGNAL, LONGER),
    "scatter": traced(scattered, SIGNAL, LONGER),
    "masked_fill": traced(lambda x: x.masked_fill(x < 0.2, -1.0).logsumexp(1), SIGNAL, LONGER),
    "masked_scatter": traced(lambda x: torch.where(x > 0, x, -0.1 * x.exp()), SIGNAL, LONGER),
    "topk": traced(
        lambda x: x.topk(3, 1)[0] + x.sort(1, descending=True)[0][:, :3], SIGNAL, LONGER
    ),
    "kthvalue": traced(lambda x: x.kthvalue(2, 1)[0] + x.median(1)[0] + x.max(1)[0]),
    "bucketize": traced(lambda x: x * torch.bucketize(x, edges.to(x)), SIGNAL, LONGER),
    "searchsorted": traced(lambda x: x * torch.searchsorted(edges.to(x), x.contiguous())),
    "triangle": traced(lambda x: x.bmm(x.mT).tril().softmax(-1), SIGNAL, LONGER),
    "roll": traced(lambda x: x.roll((1, 2), (1, 2)) + x.flip(-1), SIGNAL, LONGER),
    "meshgrid": traced(
        lambda x: (
            x
            + torch.meshgrid(
                torch.arange(x.size(1)).to(x), torch.arange(x.size(2)).to(x), indexing="ij"
            )[1]
        ),
        SIGNAL,
        LONGER,
    ),
    "split": traced(lambda x: sum(x.split([1, 3], 1)[1].unbind(1)), SIGNAL, LONGER),
    "tensor_split": traced(lambda x: torch.cat(x.tensor_split(3, 1)[::-1], 1), SIGNAL, LONGER),
    "repeat": traced(lambda x: x.repeat(1, 2, 1) + x.repeat_interleave(2, 1), SIGNAL, LONGER),
    "unfold_method": traced(lambda x: x.unfold(2, 3, 2).amax(-1), SIGNAL, LONGER),
    "movedim": traced(lambda x: x.movedim(1, 2).unsqueeze(1).expand(-1, 2, -1, -1), SIGNAL, LONGER),
    "reductions": traced(
        lambda x: x.std(1) + x.var(1, unbiased=False) + x.norm(dim=1) + x.prod(1) + x.amin(1),
        SIGNAL,
        LONGER,
    ),
    "var_mean": traced(lambda x: torch.var_mean(x, 1)[0] + torch.aminmax(x, dim=1)[1]),
    "linalg": traced(
        lambda x: torch.linalg.norm(x, dim=1) + torch.linalg.vector_norm(x, 3, 1), SIGNAL, LONGER
    ),
    "inverse": traced(
        lambda x: torch.linalg.inv(x.bmm(x.mT) + 9 * torch.eye(4).to(x)) @ x, SIGNAL, LONGER
    ),
    "special": traced(lambda x: x.erf() + x.sigmoid().logit() + torch.xlogy(x.abs(), x.abs() + 1)),
    "trigonometry": traced(lambda x: x.sin().atan() + torch.atan2(x, x.abs() + 1) + x.sinh()),
    "power": traced(lambda x: x.abs().sqrt() ** 3 + 2**x + x.square().reciprocal().log1p()),
    "rounding": traced(lambda x: x * x.round() + x * x.floor() + x.frac() + x * x.sign()),
    "remainder": traced(
        lambda x: x % 2 + torch.fmod(x, 3) + x * torch.div(x, 2, rounding_mode="floor")
    ),
    "addcmul": traced(lambda x: torch.addcmul(x, x, x, value=0.5).addcdiv(x, x.abs() + 1)),
    "lerp": traced(lambda x: torch.lerp(x, x.flip(1), 0.3) + torch.clamp(x, x.flip(1) - 1)),
    "baddbmm": traced(lambda x: torch.baddbmm(x[:, :, :4], x, x.mT, beta=0.5), SIGNAL, LONGER),
    "tensordot": traced(
        lambda x: torch.tensordot(x, weight.to(x), ([1], [0])).permute(0, 2, 1), SIGNAL, LONGER
    ),
    "complex": traced(lambda x: torch.fft.rfft(x).abs() + 1, SIGNAL, LONGER),
    "irfft": traced(lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2, n=x.size(-1)), SIGNAL, LONGER),
    "stft": traced(
        lambda x: torch.stft(
            x.flatten(1), 8, 4, window=torch.hann_window(8).to(x), return_complex=True
        ).abs(),
        SIGNAL,
        LONGER,
    ),
    "cumulative": traced(lambda x: x.cumsum(1) + x.cummax(1)[0] + x.cumprod(2), SIGNAL, LONGER),
    "cdist": traced(lambda x: torch.cdist(x, x.flip(1) + 1), SIGNAL, LONGER),
    "new_zeros": traced(
        lambda x: torch.cat(
            [
                x.new_zeros(x.size(0), 1, x.size(2)),
                x,
                x.new_full((1,), 2.0).expand(x.size(0), 1, x.size(2)),
            ],
            1,
        ),
        SIGNAL,
        LONGER,
    ),
    "full_like": traced(lambda x: x * torch.full_like(x, 2.0) + torch.ones_like(x), SIGNAL, LONGER),
    "diagonal": traced(lambda x: x.bmm(x.mT).diagonal(dim1=1, dim2=2).diag_embed(), SIGNAL, LONGER),
    "pairwise": traced(lambda x: F.pairwise_distance(x, x.flip(1)) + F.softmin(x, 1).sum(1)[:, :4]),
    "nan": traced(lambda x: torch.nan_to_num(x.log(), nan=0.0) + x.isfinite() * x, SIGNAL, LONGER),
}
