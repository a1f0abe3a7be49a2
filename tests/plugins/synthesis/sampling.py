"""Models, runs and exact laws for the tests of samplers."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from interpret_plugins.synthesis.langevin import Langevin, LangevinParams, LangevinResult
from interpret_server.plugin import Batch, Classifier, Job, Targets
from interpret_server.testing import classifier

STANDARD = [{"plugin": "gaussian", "params": {"std": 1.0}}]


def run(
    model: Classifier,
    targets: Sequence[int] | Targets,
    inputs: Tensor | None = None,
    seeds: Sequence[int] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    models: Mapping[str, Classifier] | None = None,
    **params: object,
) -> LangevinResult:
    if not isinstance(targets, Targets):
        targets = Targets.classes(torch.tensor(targets))
    rows = len(targets)
    batch = Batch(
        model.neutral(rows) if inputs is None else inputs,
        targets,
        tuple(range(rows) if seeds is None else seeds),
        tensors or {},
        has_inputs=inputs is not None,
    )
    return Langevin().run(model, batch, LangevinParams.model_validate(params), Job(models or {}))


def linear(size: int = 5, bounds: tuple[float, float] | None = None) -> Classifier:
    return classifier(nn.Linear(size, 3).double(), (size,), bounds=bounds)


def images() -> Classifier:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    return classifier(network.double(), (1, 6, 6), input_layout="CHW")


def class_score(model: Classifier, x: Tensor, classes: Sequence[int]) -> Tensor:
    leaf = x.clone().requires_grad_()
    log_prob = model(leaf).log_softmax(1)[torch.arange(len(x)), torch.tensor(classes)]
    (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
    return gradient


class Posterior:
    """`p(x1, x2) ~ p(c|x)^a N(x; 0, I)^b` of a linear softmax, integrated on a grid."""

    def __init__(self, model: Classifier, label: int, a: float = 1.0, b: float = 1.0) -> None:
        self.axis = torch.linspace(-7, 7, 281, dtype=torch.float64)
        points = torch.cartesian_prod(self.axis, self.axis)
        log_density = a * model(points).log_softmax(1)[:, label] - b * points.square().sum(1) / 2
        density = log_density.softmax(0)
        self.mean = (density[:, None] * points).sum(0)
        self.variance = (density[:, None] * (points - self.mean).square()).sum(0)
        self.marginal = density.view(281, 281).sum(1).cumsum(0)

    def kolmogorov_smirnov(self, samples: Tensor) -> float:
        """Largest distance between the empirical and the true distribution function."""
        below = np.searchsorted(np.sort(samples.numpy()), self.axis.numpy() + 0.025)
        return float(np.abs(below / len(samples) - self.marginal.numpy()).max())


def plane() -> Classifier:
    linear = nn.Linear(2, 3).double()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.5, -0.5], [-1.0, 1.0], [0.2, 0.8]]))
        linear.bias.zero_()
    return classifier(linear, (2,), bounds=None)
