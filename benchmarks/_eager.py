"""SqueezeNet 1.1 as Captum wants it: an eager module whose activations are modules, used once."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ._exports import fresh, quiet


class _Fire(nn.Module):
    def __init__(self, inside: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze, self.squeezed = nn.Conv2d(inside, squeeze, 1), nn.ReLU()
        self.one, self.first = nn.Conv2d(squeeze, expand, 1), nn.ReLU()
        self.three, self.second = nn.Conv2d(squeeze, expand, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeezed(self.squeeze(x))
        return torch.cat([self.first(self.one(x)), self.second(self.three(x))], 1)


class SqueezeNet(nn.Module):
    """From RGB images `(N, 3, H, W)` in [0, 1] to logits, with the normalisation of the archive."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("std", torch.ones(1, 3, 1, 1))
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
            _Fire(64, 16, 64), _Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True),
            _Fire(128, 32, 128), _Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True),
            _Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256),
        )  # fmt: skip
        self.score, self.last = nn.Conv2d(512, 1000, 1), nn.ReLU()
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.features((x.flip(1) - self.mean) / self.std)
        logits: Tensor = self.flatten(self.pool(self.last(self.score(x))))
        return logits


def squeezenet(archive: Path) -> SqueezeNet:
    """The network with an archive's weights.

    Raises:
        ValueError: the archive is another network.
    """
    with quiet():
        source = fresh(torch.jit.load(str(archive)))
    network = SqueezeNet()
    pairs = list(zip(network.parameters(), source.parameters(), strict=True))
    if any(mine.shape != theirs.shape for mine, theirs in pairs):
        raise ValueError(f"{archive} is no SqueezeNet 1.1")
    with torch.no_grad():
        for mine, theirs in pairs:
            mine.copy_(theirs)
        for mine, theirs in zip(network.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)
    network = network.eval().requires_grad_(False)
    probe = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(network(probe), source(probe), rtol=1e-4, atol=1e-4)
    return network
