"""How much of a class's score flows from the input through one unit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.models.inner import layer_gradient
from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    Plugin,
    logits_before,
    metric,
    output,
)

from ..attribution.baselines import check_baseline
from ..attribution.gradients import warn_of_zeros
from ..attribution.passes import passes
from ..attribution.paths import BASELINE, PathParams, baseline_of, points, repeated
from ..attribution.quadrature import Quadrature, nodes
from .layers import LAYER, layer_before, position_of, unit_mask

_ZERO = (
    "nothing flows through the unit: between the baseline and this input either the unit has no "
    "gradient or the target none by it"
)

_Index = Annotated[int, Field(ge=0)]


class NeuronAttributionParams(PathParams):
    layer: str | None = Field(None, description=f"The unit's layer; {LAYER}")
    unit: _Index | list[_Index] | None = Field(
        None,
        description="The channel (along the layer's first axis), or a list with one index for each "
        "axis for a single neuron; null: all units of the layer together.",
    )
    steps: int = Field(50, ge=1, le=1000, description="Gradients along the path.")


@dataclass(frozen=True)
class NeuronAttributionResult:
    attributions: Tensor = output(
        "The part of each input value's integrated gradient that flows through the unit, "
        "`(N, *input_shape)`, signed."
    )
    conductance: Tensor = metric("Their sum, the unit's part in the target's difference.")
    difference: Tensor = metric("The target's value at the input less that at the baseline.")
    layer: Tensor = metric("Position of the layer in the model's list, from 0.")
    logits: Tensor | None = logits_before()


class NeuronAttribution(Plugin[NeuronAttributionParams, NeuronAttributionResult]):
    """The part of a target's integrated gradients that flows through one unit.

    For a unit with values `y_j` it is `(x - x') * sum over j of integral over a of
    dS/dy_j * dy_j/dx at x' + a (x - x')`, in target units, where S is the target: a logit, or a
    unit of a later layer. Summed over all units of a layer that every path crosses it is the
    integrated gradient itself, and the metric `conductance` adds up to `difference`. What a unit
    detects, whatever class it speaks for, is shown by any method with the unit as `target`.

    Source: Dhamdhere, Sundararajan & Yan 2018, "How Important Is a Neuron?", section 2, where it is
    called conductance; integrated over the path by Gauss-Legendre quadrature.
    """

    name = "neuron_attribution"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT, Capability.LAYERS})
    tensors: ClassVar[Mapping[str, AuxTensor]] = {"baseline": BASELINE}

    def check(self, model: Classifier, params: NeuronAttributionParams) -> None:
        check_baseline(model, params.baseline)
        if params.layer is not None:
            layer = model.layer(params.layer, "params.layer")
            if not layer.sizes:
                _mask(params, layer.shape, params.layer)

    def run(
        self, model: Classifier, batch: Batch, params: NeuronAttributionParams, job: Job
    ) -> NeuronAttributionResult:
        inputs, targets = batch.inputs, batch.targets
        layer = layer_before(model, targets.layer, params.layer)
        row = model.layer_shape(layer.name, tuple(inputs.shape[1:]))
        mask = _mask(params, row, layer.name).to(inputs)
        start = baseline_of(model, batch, params.baseline)
        places, weights = nodes(Quadrature.GAUSS_LEGENDRE, params.steps)
        parts = passes(job, len(batch), params.steps)
        average = torch.zeros_like(inputs, dtype=torch.float64)
        for step in job.track(len(parts) + 1):
            if step == len(parts):
                with torch.no_grad():
                    end, logits = model.objective(inputs, targets)
                    begun, _ = model.objective(start, targets)
                continue
            part = parts[step]
            variants = points(start, inputs, places[part.start : part.stop])
            found = layer_gradient(
                model, variants.flatten(0, 1), layer.name, repeated(targets, len(part)), mask
            ).through
            assert found is not None  # there is a mask
            for number, gradient in zip(part, found.reshape(variants.shape), strict=True):
                average.add_(gradient, alpha=weights[number])
        through = (inputs.double() - start) * average
        warn_of_zeros(job, through, _ZERO)
        return NeuronAttributionResult(
            through.to(inputs.dtype),
            through.flatten(1).sum(1).to(inputs.dtype),
            end - begun,
            position_of(model, layer, len(batch)),
            logits,
        )


def _mask(params: NeuronAttributionParams, row: tuple[int, ...], layer: str) -> Tensor:
    if params.unit is None:
        return torch.ones(row, dtype=torch.bool)
    unit = (params.unit,) if isinstance(params.unit, int) else tuple(params.unit)
    return unit_mask(unit, row, f"layer {layer}")
