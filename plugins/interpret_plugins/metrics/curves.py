"""Scores of inputs whose positions are changed one after the other, most important first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_plugins.attribution.perturbation import channel_axis, fill_value
from interpret_plugins.attribution.scale_space import ScaleSpace
from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Plugin,
    metric,
    output,
)

from .judged import (
    TENSORS,
    USES,
    Positions,
    ScoringParams,
    judged,
    passes,
    per_value,
    scores,
)

AREA = "Area under the curve over the share of positions, in units of the score."


class CurveParams(ScoringParams):
    steps: int = Field(
        50,
        ge=1,
        le=10_000,
        description="Points of the curve after the first; never more than there are positions.",
    )
    fill: Literal["mean", "zero", "lower", "upper", "blur"] | float = Field(
        "mean",
        description="What stands where the input does not: the manifest's mean (mid-range where it "
        "has none), zero, a bound, the input blurred, or a number in the model's bounds.",
    )
    sigma: float = Field(
        5.0, gt=0, le=1e4, description="Standard deviation of the blur, in values of an axis."
    )


@dataclass(frozen=True)
class CurveResult:
    area: Tensor = metric(AREA)
    curve: Tensor = output(
        "The score with a growing share of positions changed, from none to all, `(N, points)`.",
        like_input=False,
    )
    attributions: Tensor = output("What was judged, as its method gave it.")


class CurvePlugin(Plugin[CurveParams, CurveResult]):
    """Base of the metrics that read a curve."""

    kind = Kind.METRIC
    requires = frozenset({Capability.SCORES})
    uses: ClassVar[Mapping[str, Kind]] = USES
    tensors: ClassVar[Mapping[str, AuxTensor]] = TENSORS
    inserts: ClassVar[bool]

    def check(self, model: Classifier, params: CurveParams) -> None:
        if params.fill != "blur":
            fill_value(model, params.fill)
        elif model.packing is not None or channel_axis(model, model.input_shape) is None:
            raise InvalidRequest.field(
                "params.fill",
                f"the input of {model.name} has no spatial axes that are known (layout "
                f"{model.input_layout!r}), and so no blur",
            )

    def run(self, model: Classifier, batch: Batch, params: CurveParams, job: Job) -> CurveResult:
        x, row = batch.inputs, tuple(batch.inputs.shape[1:])
        positions = Positions.of(model, row)
        points = 1 + min(params.steps, positions.count)
        counts = torch.linspace(0, positions.count, points, dtype=torch.float64).round()
        counts = counts.to(x.device)
        curve = x.new_zeros(len(x), points, dtype=torch.float64)
        parts = passes(job, batch, points)
        for step in job.track(1 + len(parts)):
            if not step:
                attributions = judged(model, batch, params, job)
                ranks = positions.ranks(per_value(model, batch, attributions, params), job)
                filled = _filled(model, x, params)
                continue
            rows, numbers = parts[step - 1]
            changed = positions.where(ranks[rows] < counts[numbers, None])
            if self.inserts:
                variants = torch.where(changed, x[rows], filled[rows])
            else:
                variants = torch.where(changed, filled[rows], x[rows])
            curve[rows, numbers] = scores(model, variants, batch.targets.take(rows), params.score)
        area = torch.trapezoid(curve, counts / positions.count)
        result: CurveResult = self.result_type(
            area=area.to(x.dtype), curve=curve.to(x.dtype), attributions=attributions
        )
        return result


def _filled(model: Classifier, x: Tensor, params: CurveParams) -> Tensor:
    if params.fill != "blur":
        return model.carry(fill_value(model, params.fill).expand_as(x), x)
    channel = channel_axis(model, tuple(x.shape[1:]))
    axes = [axis + 1 for axis in range(x.dim() - 1) if axis != channel]
    return ScaleSpace(x, axes).at(params.sigma)
