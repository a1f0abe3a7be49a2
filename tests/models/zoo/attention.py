"""Attention and mixing architectures of the zoo: images `(N, 3, 32, 32)` to five classes."""

import torch
from torch import Tensor, nn

from .convolutional import CLASSES


class EncoderBlock(nn.Module):
    """Dosovitskiy et al. 2021: pre-norm self-attention and a GELU layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + y
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, class token, learnt positions, two encoder blocks."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.positions = nn.Parameter(torch.randn(1, 17, width) * 0.5)
        self.blocks = nn.Sequential(EncoderBlock(width, 3), EncoderBlock(width, 3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.patches(x).reshape(n, -1, 16).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(n, -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class WindowAttention(nn.Module):
    """Liu et al. 2021: attention inside shifted windows, with a relative position bias."""

    relative: Tensor
    mask: Tensor | None

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.softmax = nn.Softmax(dim=-1)
        self.bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        grid = torch.stack(
            torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        )
        offsets = (grid.flatten(1)[:, :, None] - grid.flatten(1)[:, None]) + window - 1
        self.register_buffer("relative", offsets[0] * (2 * window - 1) + offsets[1])
        self.register_buffer("mask", self._mask(side) if shift else None)

    def _mask(self, side: int) -> Tensor:
        """`(windows, window ** 2, window ** 2)`: -100 between pixels that the shift made meet."""
        regions = torch.zeros(1, side, side, 1)
        cuts = (slice(-self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for i, rows in enumerate(cuts):
            for j, columns in enumerate(cuts):
                regions[:, rows, columns] = 3 * i + j
        windows = self._partition(regions).squeeze(-1)
        return (windows[:, :, None] != windows[:, None]) * -100.0

    def _partition(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        size = self.window
        x = x.view(n, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, size * size, c)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        if self.shift > 0:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        windows = self._partition(x)
        b, length, _ = windows.shape
        qkv = self.qkv(windows).reshape(b, length, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.bias_table[self.relative.view(-1)].view(length, length, -1)
        attention = attention + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        mask = self.mask
        if mask is not None:
            count = mask.shape[0]
            attention = attention.view(b // count, count, self.heads, length, length)
            attention = attention + mask.unsqueeze(1).unsqueeze(0)
            attention = attention.view(-1, self.heads, length, length)
        x = (self.softmax(attention) @ v).transpose(1, 2).reshape(b, length, c)
        size = self.window
        x = self.proj(x).view(n, h // size, w // size, size, size, c)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        if self.shift > 0:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        return x


class SwinBlock(nn.Module):
    """Window attention and a GELU layer."""

    def __init__(self, width: int, side: int, shift: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, 2, side, 4, shift)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    """A plain and a shifted block, then patch merging."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(SwinBlock(width, 8, 0), SwinBlock(width, 8, 2))
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embed(x).permute(0, 2, 3, 1))
        corners = [x[:, i::2, j::2, :] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
        x = self.norm(self.reduction(torch.cat(corners, -1)))
        return self.head(x.flatten(1, 2).mean(1))


class MixerBlock(nn.Module):
    """Tolstikhin et al. 2021: a layer over the patches, then a layer over the channels."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(
            nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches)
        )
        self.channels = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """Patches, two mixer blocks, average."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.ModuleList([MixerBlock(16, width), MixerBlock(16, width)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))
