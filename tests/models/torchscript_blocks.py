"""Building blocks of `torch.nn`, each a small network to be lowered, and how to compare them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

SIGNAL = (4, 9)
LONGER = (4, 13)
IMAGE = (4, 8, 8)
LARGER = (4, 12, 10)
VOLUME = (4, 6, 6, 6)


@dataclass(frozen=True)
class Block:
    """A network and its inputs.

    Args:
        build: the network.
        shape: of one row.
        other: of one row, of another size, where the network takes it.
        tokens: the inputs are integers below this number; 0 for floating point.
        forms: how it can be exported.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = SIGNAL
    other: tuple[int, ...] | None = None
    tokens: int = 0
    forms: tuple[str, ...] = ("script", "trace")


def layer(
    *modules: Callable[[], nn.Module],
    shape: tuple[int, ...] = IMAGE,
    other: tuple[int, ...] | None = None,
    tokens: int = 0,
) -> Block:
    return Block(lambda: nn.Sequential(*(build() for build in modules)), shape, other, tokens)


class Unpool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        pooled, indices = self.pool(self.conv(x))
        return F.max_unpool2d(pooled.relu(), indices, [2, 2], [2, 2], [0, 0])


class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.layer = weight_norm(nn.Conv2d(4, 6, 3))

    def forward(self, x):
        return self.layer(x)


class ParametrisedNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Conv2d(4, 6, 3))
        self.b = parametrizations.spectral_norm(nn.Conv2d(6, 6, 3))

    def forward(self, x):
        return self.b(self.a(x))


class SpectralLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.spectral_norm(nn.Linear(9, 5))

    def forward(self, x):
        return self.layer(x)


class Residual3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv3d(4, 4, 3, padding=1, groups=2)
        self.b = nn.ConvTranspose3d(4, 4, 2, stride=2)

    def forward(self, x):
        return self.b((x + self.a(x)).relu_()).mean((2, 3, 4))


class GridSample(nn.Module):
    def __init__(self, mode: str, padding: str) -> None:
        super().__init__()
        self.mode, self.padding = mode, padding
        self.theta = nn.Linear(4, 6)

    def forward(self, x):
        theta = self.theta(x.mean((2, 3))).view(-1, 2, 3) * 0.3
        grid = F.affine_grid(theta, [x.size(0), x.size(1), x.size(2), x.size(3)], False)
        return F.grid_sample(x, grid, self.mode, self.padding, align_corners=False)


class Interpolate(nn.Module):
    def __init__(self, mode: str, scale: float, corners: bool | None, antialias: bool) -> None:
        super().__init__()
        self.mode, self.scale, self.corners, self.antialias = mode, scale, corners, antialias

    def forward(self, x):
        return F.interpolate(
            x,
            scale_factor=self.scale,
            mode=self.mode,
            align_corners=self.corners,
            antialias=self.antialias,
        )


class UpTo(nn.Module):
    """A feature pyramid: the sizes come from another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)

    def forward(self, x):
        small = self.down(x)
        return x + F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)


class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(9) + 0.5)

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class FunctionalNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)

    def forward(self, x):
        x = F.batch_norm(x, self.mean, self.var, eps=1e-3)
        x = F.group_norm(x, 2)
        x = F.instance_norm(x)
        x = F.layer_norm(x, [8, 8])
        return F.local_response_norm(F.normalize(x, dim=1), 3)


class Bag(nn.Module):
    def __init__(self, mode: str, padding: int | None = None) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(11, 6, mode=mode, padding_idx=padding)
        self.fc = nn.Linear(6, 3)

    def forward(self, tokens):
        return self.fc(self.bag(tokens))


class OffsetBag(nn.Module):
    """torchtext's classifier: one flat list of tokens, with where each row starts."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(11, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, tokens):
        starts = torch.arange(0, tokens.numel(), tokens.size(1), dtype=torch.long)
        return self.fc(self.bag(tokens.flatten(), starts))


class Clipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=0, max_norm=0.7)

    def forward(self, tokens):
        return self.embedding(tokens).sum(1)


class Table(nn.Module):
    """Embeddings without `nn.Embedding`."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, 4))
        self.positions = nn.Parameter(torch.randn(16, 4))

    def forward(self, tokens):
        x = self.table[tokens] + self.positions[torch.arange(tokens.size(1))]
        return x.sum(1) + torch.index_select(self.table, 0, tokens[:, 0])


class OneHot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(11, 3)

    def forward(self, tokens):
        return self.fc(F.one_hot(tokens, 11).to(self.fc.weight.dtype)).sum(1)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(9, 9, 5)

    def forward(self, x):
        return self.layer(x, x.flip(1))


PLANE_LAYERS = {
    "conv2d_padding_mode": layer(
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        lambda: nn.Conv2d(4, 4, 3, padding=2, padding_mode="replicate"),
        other=LARGER,
    ),
    "conv2d_same_even": layer(lambda: nn.Conv2d(4, 6, 4, padding="same", dilation=2), other=LARGER),
    "conv2d_valid": layer(lambda: nn.Conv2d(4, 6, (1, 3), (2, 1), padding="valid")),
    "conv_transpose2d_groups": layer(
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2), other=LARGER
    ),
    "conv3d": Block(Residual3d, VOLUME, (4, 5, 7, 4)),
    "weight_norm": Block(WeightNorm, IMAGE, LARGER, forms=("trace",)),
    "spectral_norm": Block(SpectralLinear, forms=("trace",)),
    "parametrised_norms": Block(ParametrisedNorms, IMAGE, LARGER, forms=("trace",)),
    "local_response_norm": layer(lambda: nn.LocalResponseNorm(3), other=LARGER),
    "cross_map_norm_3d": layer(lambda: nn.LocalResponseNorm(2), shape=VOLUME),
    "rms_norm": layer(lambda: nn.RMSNorm(9), shape=SIGNAL),
    "own_rms_norm": Block(RmsNorm),
    "norms": Block(FunctionalNorms, IMAGE),
    "group_norm": layer(lambda: nn.GroupNorm(4, 4), lambda: nn.GroupNorm(1, 4), other=LARGER),
    "max_unpool": Block(Unpool, IMAGE, LARGER, forms=("script",)),
    "lp_pool": layer(lambda: nn.LPPool2d(3, 2), lambda: nn.LPPool2d(2, (2, 1)), other=LARGER),
    "lp_pool1d": layer(lambda: nn.LPPool1d(2, 3, 2), shape=SIGNAL, other=LONGER),
    "adaptive": layer(lambda: nn.AdaptiveAvgPool2d((3, 2)), other=LARGER),
    "pads": layer(
        lambda: nn.ZeroPad2d(1),
        lambda: nn.ReflectionPad2d((1, 0, 2, 1)),
        lambda: nn.ReplicationPad2d(1),
        lambda: nn.ConstantPad2d((1, -1, 0, 2), 0.3),
        lambda: nn.CircularPad2d(1),
        other=LARGER,
    ),
    "upsample": layer(
        lambda: nn.Upsample(scale_factor=2, mode="nearest"),
        lambda: nn.Upsample(size=(5, 7), mode="bilinear"),
        other=LARGER,
    ),
    "up_to": Block(UpTo, IMAGE, LARGER),
    "pixel_shuffle": layer(lambda: nn.PixelShuffle(2), lambda: nn.PixelUnshuffle(2), other=LARGER),
    "channel_shuffle": layer(lambda: nn.ChannelShuffle(2), other=LARGER),
    "unfold": layer(lambda: nn.Unfold(3, padding=1), other=LARGER),
    "fold": layer(lambda: nn.Unfold(2, stride=2), lambda: nn.Fold((8, 8), 2, stride=2)),
    "softmax2d": layer(nn.Softmax2d, lambda: nn.Softmin(1), other=LARGER),
    "activations": layer(
        nn.Softsign,
        nn.Tanhshrink,
        nn.Hardswish,
        lambda: nn.GLU(2),
        nn.Mish,
        nn.LogSigmoid,
        lambda: nn.Threshold(-0.5, 0.1),
        lambda: nn.Hardtanh(-1.0, 2.0),
        shape=IMAGE,
    ),
    "dropouts": layer(nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    "unflatten": layer(lambda: nn.Unflatten(1, (2, 2)), lambda: nn.Flatten(2, 3), other=LARGER),
    "bilinear": Block(Bilinear),
    **{
        f"grid_sample_{mode}_{padding}": Block(
            lambda mode=mode, padding=padding: GridSample(mode, padding), IMAGE, LARGER
        )
        for mode, padding in (("bilinear", "zeros"), ("bicubic", "border"), ("nearest", "zeros"))
    },
    **{
        f"interpolate_{mode}_{scale}_{corners}_{antialias}": Block(
            lambda args=(mode, scale, corners, antialias): Interpolate(*args),
            {3: SIGNAL, 4: IMAGE, 5: VOLUME}[axes],
            {3: LONGER, 4: LARGER, 5: None}[axes],
        )
        for mode, axes, scale, corners, antialias in (
            ("nearest", 3, 1.7, None, False),
            ("nearest-exact", 4, 1.7, None, False),
            ("linear", 3, 2.0, True, False),
            ("bilinear", 4, 0.6, False, True),
            ("bicubic", 4, 1.5, False, False),
            ("bicubic", 4, 0.5, True, True),
            ("trilinear", 5, 2.0, False, False),
            ("area", 4, 0.5, None, False),
        )
    },
}


TOKENS = {
    "embedding": layer(
        lambda: nn.Embedding(11, 6, padding_idx=0), shape=(7,), other=(9,), tokens=11
    ),
    "bag_mean": Block(lambda: Bag("mean"), (7,), (9,), 11),
    "bag_sum": Block(lambda: Bag("sum", 0), (7,), (9,), 11),
    "bag_mean_padded": Block(lambda: Bag("mean", 0), (7,), (9,), 3),
    "bag_max": Block(lambda: Bag("max"), (7,), (9,), 11),
    "bag_max_padded": Block(lambda: Bag("max", 0), (7,), (9,), 3),
    "table": Block(Table, (7,), (9,), 11),
    "offset_bag": Block(OffsetBag, (7,), (9,), 11),
    "max_norm": Block(Clipped, (7,), (9,), 11, ("trace",)),
    "one_hot": Block(OneHot, (7,), (9,), 11),
}

BLOCKS = PLANE_LAYERS | TOKENS
