"""Architectures of the zoo with unusual inputs and outputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolutional import CLASSES


class Trunk(nn.Sequential):
    """Two convolutions with batch norm and ReLU, averaged: `(N, 3, H, W)` to `(N, 12)`."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


class ChannelsLastNet(nn.Module):
    """Images `(N, H, W, 3)`, as TensorFlow has them."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x.permute(0, 3, 1, 2)))


class BytesNet(nn.Module):
    """Images in whole numbers from 0 to 255, normalised inside."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.trunk = Trunk()
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.to(self.mean.dtype) / 255 - self.mean) / self.std
        return self.head(self.trunk(x))


class UNet(nn.Module):
    """Ronneberger et al. 2015, with a classifier on the code: `(map, logits)`."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.InstanceNorm2d(6), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(6, 12, 3, padding=1), nn.GroupNorm(2, 12), nn.ReLU())
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.fuse = nn.Sequential(nn.Conv2d(12, 6, 3, padding=1), nn.ReLU())
        self.map = nn.Conv2d(6, 1, 1)
        self.head = nn.Linear(12 + 6, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.down1(x)
        code = self.down2(F.max_pool2d(fine, 2))
        smooth = F.interpolate(code, scale_factor=2.0, mode="bilinear", align_corners=False)
        decoded = self.fuse(torch.cat([fine, self.up(code) + smooth[:, :6]], 1))
        pooled = torch.cat([code.mean((2, 3)), decoded.amax((2, 3))], 1)
        return self.map(decoded), self.head(pooled)


class BinaryNet(nn.Module):
    """One score per image, without a class axis."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.head = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x)).squeeze(1)


class EndingNet(nn.Module):
    """`ending` on the logits: softmax or log-softmax."""

    def __init__(self, ending: nn.Module) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.head = nn.Linear(12, CLASSES)
        self.ending = ending

    def forward(self, x: Tensor) -> Tensor:
        return self.ending(self.head(self.trunk(x)))


class FreeSizeNet(nn.Module):
    """Images of any size, pooled by average and by maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, padding_mode="reflect")
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 10, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.average = nn.AdaptiveAvgPool2d((1, 1))
        self.largest = nn.AdaptiveMaxPool2d((1, 1))
        self.head = nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.head(torch.cat([self.average(x), self.largest(x)], 1).flatten(1))
