"""The second models that the conformance suite puts into a plugin's roles."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..models.classifier import Capability, Classifier
from ..plugin import ModelOutput, ModelRole
from .classifiers import classifier


class _Density(nn.Module):
    """Minus half the squared distance from the middle, one number for each row."""

    def __init__(self, middle: Tensor) -> None:
        super().__init__()
        self.middle = nn.Parameter(middle)

    def forward(self, x: Tensor) -> Tensor:
        return -0.5 * ((x - self.middle) ** 2).flatten(1).sum(1)


class _Shrinking(_Density):
    """A tenth of the way to the middle."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.9 * x + 0.1 * self.middle


def fill_roles(roles: Mapping[str, ModelRole], model: Classifier) -> dict[str, Classifier]:
    """A second model for every role that a call must fill: the model itself where it suits."""
    return {name: _second(role.output, model) for name, role in roles.items() if role.required}


def _second(wanted: ModelOutput, model: Classifier) -> Classifier:
    if wanted in (ModelOutput.CLASSES, ModelOutput.ANY):
        return model
    kind = _Density if wanted is ModelOutput.NUMBER else _Shrinking
    with torch.no_grad():
        module = kind(model.centre.clone())
    made = classifier(
        module,
        model.input_shape,
        bounds=model.bounds if Capability.BOUNDS in model.capabilities else None,
        name=f"values_of_{model.name}",
        input_layout=model.input_layout,
        values=True,
    )
    made.input_sizes = model.input_sizes
    return made
