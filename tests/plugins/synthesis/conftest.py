"""Two small networks trained on disjoint halves of real handwritten digits."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn


def _digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return images, torch.tensor(data.target)


def _augmented(images: Tensor, rng: torch.Generator) -> Tensor:
    down, right = (int(torch.randint(-1, 2, (), generator=rng)) for _ in range(2))
    moved = torch.roll(F.pad(images, (1, 1, 1, 1)), (down, right), (2, 3))[:, :, 1:-1, 1:-1]
    return moved + 0.1 * torch.randn(moved.shape, generator=rng)


def _trained(images: Tensor, labels: Tensor, width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(15):
        for rows in torch.randperm(len(images), generator=rng).split(64):
            loss = F.cross_entropy(network(_augmented(images[rows], rng)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def digit_images() -> tuple[Tensor, Tensor]:
    """Images `(1797, 1, 8, 8)` in [0, 1] and labels `(1797,)`."""
    return _digits()


@pytest.fixture(scope="session")
def digit_network() -> nn.Module:
    """A convolutional network trained on every other digit."""
    images, labels = _digits()
    return _trained(images[::2], labels[::2], 16, 0)


@pytest.fixture(scope="session")
def other_digit_network() -> nn.Module:
    """Another network, trained on the digits that `digit_network` never saw."""
    images, labels = _digits()
    return _trained(images[1::2], labels[1::2], 12, 1)
