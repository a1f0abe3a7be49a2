"""A small network, and how the tests of class activation maps run and compare them."""

from typing import Any

import torch
from torch import Tensor, nn

from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job, Plugin

SHAPE = (3, 12, 12)


class Recorder(Job):
    def __init__(self) -> None:
        self.warned: list[tuple[list[bool], str]] = []

    def warn(self, rows: Tensor, message: str) -> None:
        self.warned.append((rows.tolist(), message))


def run(
    plugin: type[Plugin[Any, Any]],
    model: Classifier,
    x: Tensor,
    targets: Targets,
    job: Job | None = None,
    **params: object,
) -> Any:
    made = plugin.params_type.model_validate(params)
    plugin().check(model, made)
    return plugin().run(model, Batch(x, targets, (0,) * len(x)), made, job or Job())


def network() -> nn.Sequential:
    """Layers 0 to 8; the maps of 4 are 6 by 6, the last ones."""
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(216, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    )
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(2)
    return module


def close(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    largest = float(expected.detach().abs().max())
    assert largest > 1e-6
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5 * largest)
