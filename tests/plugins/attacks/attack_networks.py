"""The network that several tests of attacks share, and what it answers."""

import torch
from torch import Tensor, nn

from interpret_server.plugin import Classifier
from interpret_server.testing import classifier


def network(bounds: tuple[float, float] = (0.0, 1.0)) -> Classifier:
    """Five classes of images `(1, 8, 8)`, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 20), nn.ReLU(),
            nn.Linear(20, 5),
        )  # fmt: skip
    return classifier(module, (1, 8, 8), bounds=bounds)


def predicted(model: Classifier, x: Tensor) -> Tensor:
    """The classes `(N,)` of inputs."""
    with torch.no_grad():
        return model(x).argmax(1)
