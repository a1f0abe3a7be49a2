"""Small networks of the larger architectures, in the ways that their authors write them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchscript_blocks import Block

CLASSES = 5


class ConvBlock(nn.Module):
    def __init__(self, inside: int, outside: int, **options: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, bias=False, **options)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    def __init__(self, inside: int) -> None:
        super().__init__()
        self.branch1 = ConvBlock(inside, 4, kernel_size=1)
        self.branch2 = nn.Sequential(
            ConvBlock(inside, 4, kernel_size=1), ConvBlock(4, 6, kernel_size=3, padding=1)
        )
        self.branch3 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1, ceil_mode=True), ConvBlock(inside, 2, kernel_size=1)
        )

    def branches(self, x: Tensor) -> list[Tensor]:
        return [self.branch1(x), self.branch2(x), self.branch3(x)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.branches(x), 1)


class GoogLeNetOutputs(NamedTuple):
    logits: Tensor
    aux: Tensor | None


class GoogLeNet(nn.Module):
    """Several outputs while training; in evaluation the logits alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBlock(3, 6, kernel_size=3, stride=2)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.mixed1, self.mixed2 = Mixed(6), Mixed(12)
        self.aux = nn.Linear(12, CLASSES)
        self.fc = nn.Linear(12, CLASSES)

    def transform(self, x: Tensor) -> Tensor:
        red = torch.unsqueeze(x[:, 0], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5
        return torch.cat((red, x[:, 1:]), 1)

    def compute(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.mixed1(self.pool(self.conv1(x)))
        aux: Tensor | None = None
        if self.training:
            aux = self.aux(x.mean((2, 3)))
        x = F.adaptive_avg_pool2d(self.mixed2(x), (1, 1))
        return self.fc(F.dropout(torch.flatten(x, 1), 0.2, self.training)), aux

    def forward(self, x: Tensor) -> Tensor:
        logits, aux = self.compute(self.transform(x))
        outputs = GoogLeNetOutputs(logits, aux)
        return outputs.logits


class DenseLayer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 8, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.drop_rate = 0.1

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        new = self.conv2(self.relu2(self.norm2(x)))
        if self.drop_rate > 0:
            new = F.dropout(new, p=self.drop_rate, training=self.training)
        return new


class DenseBlock(nn.ModuleDict):
    def __init__(self, channels: int) -> None:
        super().__init__()
        for index in range(2):
            self.add_module(f"denselayer{index + 1}", DenseLayer(channels + 4 * index))

    def forward(self, start: Tensor) -> Tensor:
        features = [start]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.block1, self.block2 = DenseBlock(4), DenseBlock(6)
        self.transition = nn.Sequential(
            nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.Conv2d(12, 6, 1), nn.AvgPool2d(2, 2)
        )
        self.norm, self.classifier = nn.BatchNorm2d(14), nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.transition(self.block1(self.conv(x))))
        x = F.relu(self.norm(x), inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)
        self.activation, self.scale = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x):
        return self.scale(self.fc2(self.activation(self.fc1(self.avgpool(x))))) * x


class Inverted(nn.Module):
    """MobileNetV3's and EfficientNet's block, with stochastic depth."""

    def __init__(self, channels: int, act: type[nn.Module], kernel: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.block = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), act(inplace=True),
            nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide), act(inplace=True), SqueezeExcite(wide),
            nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.survival = 0.8

    def forward(self, x):
        y = self.block(x)
        if self.training:
            noise = torch.empty([y.size(0), 1, 1, 1], dtype=y.dtype, device=y.device)
            y = y * noise.bernoulli_(self.survival).div_(self.survival)
        y += x
        return y


class Mobile(nn.Module):
    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), act(inplace=True)
        )
        self.features = nn.Sequential(Inverted(6, act, 3), Inverted(6, act, 5))
        self.classifier = nn.Sequential(
            nn.Linear(6, 8), act(inplace=True), nn.Dropout(0.2, inplace=True), nn.Linear(8, CLASSES)
        )

    def forward(self, x):
        x = self.features(self.stem(x)).mean([2, 3])
        return self.classifier(x)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x + self.scale * y


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 2, 2), LayerNorm2d(6, eps=1e-6))
        self.stages = nn.Sequential(ConvNextBlock(6), LayerNorm2d(6), nn.Conv2d(6, 8, 2, 2))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), LayerNorm2d(8), nn.Flatten(1))
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.fc(self.head(self.stages(self.stem(x))))


class Vit(nn.Module):
    """Positions are interpolated to the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 8, 3, 3))
        layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.patches(x)
        n, c, h, w = x.shape
        x = x + F.interpolate(self.positions, size=(h, w), mode="bicubic", align_corners=False)
        x = x.reshape(n, c, h * w).permute(0, 2, 1)
        x = torch.cat([self.token.expand(n, -1, -1), x], dim=1)
        return self.head(self.norm(self.encoder(x))[:, 0])


class WindowAttention(nn.Module):
    def __init__(self, channels: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift, self.heads = window, shift, 2
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, self.heads))
        grid = torch.stack(
            torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        )
        flat = grid.flatten(1)
        relative = (flat[:, :, None] - flat[:, None, :]).permute(1, 2, 0) + window - 1
        index = relative[..., 0] * (2 * window - 1) + relative[..., 1]
        self.register_buffer("index", index.flatten())

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, c = x.shape
        w = self.window
        x = F.pad(x, (0, 0, 0, (w - width % w) % w, 0, (w - height % w) % w))
        _, h, v, _ = x.shape
        if self.shift > 0:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        count = (h // w) * (v // w)
        x = (
            x.view(n, h // w, w, v // w, w, c)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(n * count, w * w, c)
        )
        qkv = self.qkv(x).reshape(x.size(0), x.size(1), 3, self.heads, c // self.heads)
        q, k, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.table[self.index].view(w * w, w * w, -1).permute(2, 0, 1).unsqueeze(0)
        scores = scores + bias
        if self.shift > 0:
            regions = x.new_zeros((h, v))
            stops = ((0, -w), (-w, -self.shift), (-self.shift, None))
            number = 0
            for top in stops:
                for left in stops:
                    regions[top[0] : top[1], left[0] : left[1]] = number
                    number += 1
            regions = regions.view(h // w, w, v // w, w).permute(0, 2, 1, 3).reshape(count, w * w)
            mask = regions.unsqueeze(1) - regions.unsqueeze(2)
            mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
            scores = scores.view(n, count, self.heads, w * w, w * w) + mask[:, None].unsqueeze(0)
            scores = scores.view(-1, self.heads, w * w, w * w)
        x = (scores.softmax(-1) @ value).transpose(1, 2).reshape(n * count, w * w, c)
        x = self.proj(x).view(n, h // w, v // w, w, w, c).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, h, v, c)
        if self.shift > 0:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width, :].contiguous()


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.plain, self.shifted = WindowAttention(8, 2, 0), WindowAttention(8, 2, 1)
        self.reduction = nn.Linear(32, 12, bias=False)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        x = x + self.plain(self.norm1(x))
        x = x + self.shifted(self.norm2(x))
        x = F.pad(x, (0, 0, 0, x.shape[-2] % 2, 0, x.shape[-3] % 2))
        parts = [x[..., 0::2, 0::2, :], x[..., 1::2, 0::2, :]]
        parts += [x[..., 0::2, 1::2, :], x[..., 1::2, 1::2, :]]
        x = self.reduction(torch.cat(parts, -1))
        return self.head(x.mean((1, 2)))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.tokens = nn.Sequential(nn.Linear(9, 6), nn.GELU(), nn.Linear(6, 9))
        self.channels = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class Chomp(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[:, :, : -self.size].contiguous()


class Tcn(nn.Module):
    """Causal dilated convolutions over raw audio."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for dilation in (1, 2, 4):
            conv = nn.Conv1d(
                2 if dilation == 1 else 6, 6, 3, padding=2 * dilation, dilation=dilation
            )
            layers.append(
                nn.Sequential(
                    conv, Chomp(2 * dilation), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.1)
                )
            )
        self.layers = nn.ModuleList(layers)
        self.skip = nn.Conv1d(2, 6, 1)
        self.attention, self.fc = nn.Conv1d(6, 1, 1), nn.Linear(12, CLASSES)

    def forward(self, x):
        skip = self.skip(x)
        for layer in self.layers:
            x = layer(x)
        x = F.relu(x + skip)
        weights = torch.softmax(self.attention(x), dim=-1)
        mean = (x * weights).sum(-1)
        deviation = torch.sqrt(((x - mean.unsqueeze(-1)) ** 2 * weights).sum(-1).clamp(min=1e-6))
        return self.fc(torch.cat([mean, deviation], 1))


SMALL, LARGE = (3, 12, 12), (3, 20, 16)

NETWORKS = {
    "googlenet": Block(GoogLeNet, SMALL, LARGE),
    "densenet": Block(DenseNet, SMALL, LARGE),
    "mobilenet_v3": Block(lambda: Mobile(nn.Hardswish), SMALL, LARGE),
    "efficientnet": Block(lambda: Mobile(nn.SiLU), SMALL, LARGE),
    "convnext": Block(ConvNext, SMALL, LARGE),
    "vit": Block(Vit, SMALL, LARGE),
    "swin": Block(Swin, (3, 10, 14), LARGE),
    "mixer": Block(Mixer, SMALL),
    "tcn": Block(Tcn, (2, 15), (2, 22)),
}
