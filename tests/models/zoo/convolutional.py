"""Convolutional architectures of the zoo: images `(N, 3, 32, 32)` to five classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5


class ConvNormRelu(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int | tuple[int, int], **options: int):
        padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
        super().__init__(
            nn.Conv2d(inside, outside, kernel, padding=padding, bias=False, **options),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
        )


class BasicBlock(nn.Module):
    """He et al. 2015: two 3x3 convolutions; one in-place ReLU module is called twice."""

    expansion = 1

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """He et al. 2015 with the grouped 3x3 of Xie et al. 2017; one ReLU module is called thrice."""

    expansion = 2

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        outside = width * self.expansion
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outside, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            x = self.downsample(x)
        return self.relu(out + x)


class ResNet(nn.Module):
    """Stem, two stages of two blocks, average pooling, linear layer."""

    def __init__(self, block: type[BasicBlock | Bottleneck]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._stage(block, 8, 8, 1)
        self.layer2 = self._stage(block, 8 * block.expansion, 16, 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16 * block.expansion, CLASSES)

    def _stage(self, block: type, inside: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(block(inside, width, stride), block(width * block.expansion, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class DenseLayer(nn.Module):
    """Batch norm, ReLU, convolution over everything before."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inside)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(inside, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv(self.relu(self.norm(torch.cat(features, 1))))


class DenseNet(nn.Module):
    """Huang et al. 2017: every layer reads the concatenation of all before it."""

    def __init__(self, growth: int = 6, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.layers = nn.ModuleList(DenseLayer(8 + i * growth, growth) for i in range(depth))
        channels = 8 + depth * growth
        self.transition = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 12, 1, bias=False),
            nn.AvgPool2d(2, 2),
        )
        self.norm = nn.BatchNorm2d(12)
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        x = F.relu(self.norm(self.transition(torch.cat(features, 1))), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class InceptionBlock(nn.Module):
    """Szegedy et al. 2016: branches of several kernels, factorised ones too, side by side."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNormRelu(inside, 4, 1)
        self.branch3x3 = nn.Sequential(ConvNormRelu(inside, 4, 1), ConvNormRelu(4, 6, 3))
        self.branch7x7 = nn.Sequential(
            ConvNormRelu(inside, 4, 1), ConvNormRelu(4, 4, (1, 7)), ConvNormRelu(4, 6, (7, 1))
        )
        self.branch_pool = ConvNormRelu(inside, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)
        branches = [self.branch1x1(x), self.branch3x3(x), self.branch7x7(x)]
        branches.append(self.branch_pool(pooled))
        return torch.cat(branches, 1)


class Inception(nn.Module):
    """Two blocks with a rounding-up pooling and dropout before the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormRelu(3, 8, 3, stride=2)
        self.mixed1 = InceptionBlock(8)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.mixed2 = InceptionBlock(20)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixed2(self.pool(self.mixed1(self.stem(x))))
        return self.fc(self.dropout(x.mean(dim=(2, 3))))


class SqueezeExcitation(nn.Module):
    """Hu et al. 2018: channels scaled by a gate that reads their means."""

    def __init__(self, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, 4, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(4, channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.fc2(self.relu(self.fc1(self.avgpool(x))))) * x


class InvertedResidual(nn.Module):
    """Howard et al. 2019: expand, depthwise convolution, squeeze and excite, project."""

    def __init__(
        self, inside: int, outside: int, stride: int, activation: nn.Module, gate: nn.Module
    ) -> None:
        super().__init__()
        width = 3 * inside
        self.expand = nn.Sequential(
            nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), activation
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(inplace=True),
        )
        self.attention = SqueezeExcitation(width, gate)
        self.project = nn.Sequential(
            nn.Conv2d(width, outside, 1, bias=False), nn.BatchNorm2d(outside)
        )
        self.shortcut = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.attention(self.depthwise(self.expand(x))))
        return x + y if self.shortcut else y


class MobileNet(nn.Module):
    """Inverted residuals; `modern` takes SiLU and sigmoid (Tan & Le 2019), else the hard forms."""

    def __init__(self, *, modern: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), self._activation(modern)
        )
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(inside, outside, stride, self._activation(modern), gate)
                for inside, outside, stride, gate in (
                    (8, 8, 1, nn.Sigmoid() if modern else nn.Hardsigmoid()),
                    (8, 12, 2, nn.Sigmoid() if modern else nn.Hardsigmoid()),
                )
            )
        )
        self.head = nn.Sequential(
            nn.Linear(12, 16), self._activation(modern), nn.Dropout(0.2), nn.Linear(16, CLASSES)
        )

    def _activation(self, modern: bool) -> nn.Module:
        return nn.SiLU(inplace=True) if modern else nn.Hardswish(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1))


class ShuffleUnit(nn.Module):
    """Ma et al. 2018: half the channels pass by, then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            ConvNormRelu(half, half, 1),
            nn.Conv2d(half, half, 3, 1, 2, dilation=2, groups=half, bias=False),
            nn.BatchNorm2d(half),
            ConvNormRelu(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        x = torch.cat((kept, self.branch(changed)), dim=1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous()
        return x.view(n, c, h, w)


class ShuffleNet(nn.Module):
    """Two shuffle units between a stem and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormRelu(3, 12, 3, stride=2)
        self.units = nn.Sequential(ShuffleUnit(12), ShuffleUnit(12))
        self.pool = nn.AvgPool2d(4)
        self.fc = nn.Linear(12 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.units(self.stem(x)))
        return self.fc(x.view(x.size(0), -1))


class ChannelsLastNorm(nn.Module):
    """Layer norm over the channels of `(N, C, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Liu et al. 2022: depthwise 7x7, layer norm, wide GELU layer, layer scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.wide = nn.Linear(channels, 3 * channels)
        self.act = nn.GELU()
        self.narrow = nn.Linear(3 * channels, channels)
        self.layer_scale = nn.Parameter(torch.rand(channels) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.narrow(self.act(self.wide(y))) * self.layer_scale
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Patch stem, two blocks with a downsampling between, normalised average."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 4, 4), ChannelsLastNorm(12))
        self.stage1 = ConvNeXtBlock(12)
        self.downsample = nn.Sequential(ChannelsLastNorm(12), nn.Conv2d(12, 16, 2, 2))
        self.stage2 = ConvNeXtBlock(16)
        self.norm = nn.LayerNorm(16, eps=1e-6)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.downsample(self.stage1(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))


class FunctionalVgg(nn.Module):
    """Simonyan & Zisserman 2015, with functional activations and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 12, 3, padding=1)
        self.fc1 = nn.Linear(12 * 4, 24)
        self.fc2 = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x), inplace=True)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = F.max_pool2d(self.conv3(x).relu_(), 2, 2)
        x = F.adaptive_avg_pool2d(x, (2, 2)).flatten(1)
        x = F.dropout(F.relu(self.fc1(x)), 0.5, self.training)
        return self.fc2(x)
