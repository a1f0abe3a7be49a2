"""Attribution of a target to a layer's values."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.models.inner import After, LayerGradient, layer_gradient
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
from ..attribution.convergence import convergence_delta
from ..attribution.gradients import warn_of_zeros
from ..attribution.passes import passes
from ..attribution.paths import BASELINE, PathParams, baseline_of, points, repeated
from ..attribution.quadrature import Quadrature, nodes
from .layers import LAYER, layer_before, over_positions, position_of

_ZERO = "every attribution is zero: the target does not change with the layer's values here"


class Method(StrEnum):
    """How a layer's values are weighed."""

    ACTIVATION_X_GRADIENT = "activation_x_gradient"
    GRADIENT = "gradient"
    INTEGRATED_GRADIENTS = "integrated_gradients"  # along a line between the layer's values
    CONDUCTANCE = "conductance"  # along a line between inputs


class LayerAttributionParams(PathParams):
    layer: str | None = Field(None, description=f"The layer; {LAYER}")
    method: Method = Field(
        Method.ACTIVATION_X_GRADIENT,
        description="activation_x_gradient; gradient; integrated_gradients, along the line from "
        "the layer's values at the baseline to those at the input; or conductance, along the line "
        "from the baseline to the input.",
    )
    steps: int = Field(
        50,
        ge=1,
        le=1000,
        description="Gradients (of conductance: parts of the path) for the two integrals.",
    )


@dataclass(frozen=True)
class LayerAttributionResult:
    attributions: Tensor = output(
        "Attribution of each of the layer's values, `(N, *layer_shape)`, signed.", like_input=False
    )
    channels: Tensor = output(
        "The same summed over positions, `(N, C)`; C is the layer's first axis.", like_input=False
    )
    layer: Tensor = metric("Position of the layer in the model's list, from 0.")
    convergence_delta: Tensor | None = metric(
        "Of the two integrals: the sum of the attributions less the target's difference; 0 where "
        "the integral is exact and all paths cross the layer."
    )
    logits: Tensor | None = logits_before()


class _Found(NamedTuple):
    attributions: Tensor
    delta: Tensor | None
    logits: Tensor | None


class LayerAttribution(Plugin[LayerAttributionParams, LayerAttributionResult]):
    """What each value of a layer contributes to a target.

    With `y` the layer's values and `S` the target, a logit or a unit of a later layer:
    `gradient` is `dS/dy`; `activation_x_gradient` is `y dS/dy`, in target units; and

    - `integrated_gradients` is `(y - y') * integral over a of dS/dy at y' + a (y - y')`, y' being
      the layer's values at the baseline x'. What passes the layer by stays as at the input;
    - `conductance` is `integral over a of dS/dy * dy/da at x' + a (x - x')`, by the trapezoid rule
      over equal parts. Channels of it add up as their values do.

    Both integrals sum to `S(x) - S(x')` over a layer that all paths cross (completeness);
    `convergence_delta` is what the sum misses, and where that is more than 5% of the difference a
    row is warned about. Memory does not grow with `steps`.

    Source: Sundararajan, Taly & Yan 2017, "Axiomatic Attribution for Deep Networks", equation 1, at
    a layer; Dhamdhere, Sundararajan & Yan 2018, "How Important Is a Neuron?", section 2, for
    conductance.
    """

    name = "layer_attribution"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT, Capability.LAYERS})
    tensors: ClassVar[Mapping[str, AuxTensor]] = {"baseline": BASELINE}

    def check(self, model: Classifier, params: LayerAttributionParams) -> None:
        if params.layer is not None:
            model.layer(params.layer, "params.layer")
        check_baseline(model, params.baseline)

    def run(
        self, model: Classifier, batch: Batch, params: LayerAttributionParams, job: Job
    ) -> LayerAttributionResult:
        layer = layer_before(model, batch.targets.layer, params.layer)
        match params.method:
            case Method.INTEGRATED_GRADIENTS:
                found = _integrated_gradients(model, batch, params, layer.name, job)
            case Method.CONDUCTANCE:
                found = _conductance(model, batch, params, layer.name, job)
            case method:
                for _ in job.track(1):
                    once = layer_gradient(model, batch.inputs, layer.name, batch.targets)
                scale = once.activations if method is Method.ACTIVATION_X_GRADIENT else 1
                found = _Found(once.gradient * scale, None, once.logits)
        warn_of_zeros(job, found.attributions, _ZERO)
        return LayerAttributionResult(
            found.attributions,
            over_positions(found.attributions),
            position_of(model, layer, len(batch)),
            found.delta,
            found.logits,
        )


def _integrated_gradients(
    model: Classifier, batch: Batch, params: LayerAttributionParams, layer: str, job: Job
) -> _Found:
    inputs, targets = batch.inputs, batch.targets
    after = After(model, layer, targets.layer)
    places, weights = nodes(Quadrature.GAUSS_LEGENDRE, params.steps)
    parts = passes(job, len(batch), params.steps)
    for step in job.track(1 + len(parts)):
        if not step:
            whole = layer_gradient(model, inputs, layer, targets)
            with torch.no_grad():
                (start,) = model.activations(baseline_of(model, batch, params.baseline), [layer])
            begun = after.gradient(inputs, start, targets)
            end = whole.activations
            average = torch.zeros_like(end, dtype=torch.float64)
            continue
        part = parts[step - 1]
        variants = points(start, end, places[part.start : part.stop])
        same = inputs.expand(len(part), *inputs.shape).flatten(0, 1)
        gradients = after.gradient(
            same, variants.flatten(0, 1), repeated(targets, len(part))
        ).gradient
        for number, gradient in zip(part, gradients.reshape(variants.shape), strict=True):
            average.add_(gradient, alpha=weights[number])
    attributions = ((end.double() - start) * average).to(end.dtype)
    delta = convergence_delta(job, attributions, whole.objective, begun.objective)
    return _Found(attributions, delta, whole.logits)


def _conductance(
    model: Classifier, batch: Batch, params: LayerAttributionParams, layer: str, job: Job
) -> _Found:
    inputs, rows = batch.inputs, len(batch)
    start = baseline_of(model, batch, params.baseline)
    parts = passes(job, rows, params.steps + 1)
    last: LayerGradient | None = None
    for step in job.track(len(parts)):
        part = parts[step]
        variants = points(start, inputs, [number / params.steps for number in part])
        at = layer_gradient(
            model, variants.flatten(0, 1), layer, repeated(batch.targets, len(part))
        )
        for number in range(len(part)):
            here = _rows(at, slice(number * rows, (number + 1) * rows))
            if last is None:
                begun = here.objective
                total = torch.zeros_like(here.activations, dtype=torch.float64)
            else:
                change = here.activations.double() - last.activations
                total += change * (here.gradient.double() + last.gradient) / 2
            last = here
    assert last is not None  # there are at least two points
    attributions = total.to(inputs.dtype)
    delta = convergence_delta(job, attributions, last.objective, begun)
    return _Found(attributions, delta, last.logits)


def _rows(found: LayerGradient, rows: slice) -> LayerGradient:
    logits = None if found.logits is None else found.logits[rows]
    activations, gradient, objective = (item[rows] for item in found[:3])
    return LayerGradient(activations, gradient, objective, logits)
