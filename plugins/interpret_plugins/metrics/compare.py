"""Compare: several attribution methods on the same inputs, ranked by metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Method,
    Params,
    Plugin,
    metric,
    output,
)

from .judged import GIVEN, explain
from .masks import MASK

_EQUAL = 1e-5  # share of a row's largest number within which two are equal


class CompareParams(Params):
    methods: tuple[Method, ...] = Field(
        tuple(
            Method(plugin=name) for name in ("saliency", "input_x_gradient", "integrated_gradients")
        ),
        min_length=2,
        max_length=32,
        description="The attributions that are compared, by name or with parameters.",
    )
    metrics: tuple[Method, ...] = Field(
        tuple(Method(plugin=name) for name in ("deletion", "insertion", "max_sensitivity")),
        min_length=1,
        max_length=16,
        validate_default=True,
        description="The metrics that judge, by name or with parameters; the parameter `method` of "
        "each is set to every method in turn.",
    )

    @field_validator("metrics")
    @classmethod
    def _judge_the_methods(
        cls, metrics: tuple[Method, ...], info: ValidationInfo
    ) -> tuple[Method, ...]:
        # Until each method has its turn a metric judges the first, which the model must be fit for.
        methods = info.data.get("methods")
        return tuple(_judging(item, methods[0]) for item in metrics) if methods else metrics


@dataclass(frozen=True)
class CompareResult:
    best: Tensor = metric("The method of the best mean rank, by its place among `methods`, from 0.")
    mean_rank: Mapping[str, Tensor] = metric("A method's rank, averaged over all that is judged.")
    scores: Mapping[str, Tensor] = metric("What a metric says of a method: method.metric.number.")
    ranks: Mapping[str, Tensor] = metric(
        "A method's rank by a metric, 1 for the best; equal methods share the mean of their ranks."
    )
    attributions: Mapping[str, Tensor] = output("Of each method, `(N, ...)`, as it gave them.")


class Compare(Plugin[CompareParams, CompareResult]):
    """Runs several attribution methods on the same inputs and ranks them by metrics.

    Every method explains the inputs once; every metric judges what it gave (metrics that need the
    method itself, such as `max_sensitivity` and `randomisation`, run it again). Methods are named
    by their plugin; one that is there several times gets a number, as in `smoothgrad_2`. A metric
    ranks by each of its numbers for which low or high values are known to be good. Metrics that
    need `mask` take that of the request.

    A row's ranks are its own; a mean over many inputs says more. The metrics disagree by design:
    choose those that fit the question.
    """

    name = "compare"
    kind = Kind.METRIC
    uses: ClassVar[Mapping[str, Kind]] = {"methods": Kind.ATTRIBUTION, "metrics": Kind.METRIC}
    tensors: ClassVar[Mapping[str, AuxTensor]] = {"mask": replace(MASK["mask"], required=False)}

    def run(
        self, model: Classifier, batch: Batch, params: CompareParams, job: Job
    ) -> CompareResult:
        labels = _labels(params.methods)
        names = _labels(params.metrics)
        directions = {
            name: _directions(job, item) for name, item in zip(names, params.metrics, strict=True)
        }
        attributions: dict[str, Tensor] = {}
        scores: dict[str, Tensor] = {}
        turns = [
            (label, method, judge)
            for label, method in zip(labels, params.methods, strict=True)
            for judge in (None, *zip(names, params.metrics, strict=True))
        ]
        for step in job.track(len(turns)):
            label, method, judge = turns[step]
            if judge is None:
                attributions[label] = explain(job, method, model, batch, warn=True)
                continue
            name, item = judge
            given = replace(batch, tensors={**batch.tensors, GIVEN: attributions[label]})
            found = job.plugin(_judging(item, method)).run(model, given)
            for number in directions[name]:
                scores[f"{label}.{name}.{number}"] = getattr(found, number).detach()
        ranks: dict[str, Tensor] = {}
        for name, numbers in directions.items():
            for number, sign in numbers.items():
                keys = [f"{label}.{name}.{number}" for label in labels]
                table = torch.stack([scores[key] for key in keys], 1)
                ranks |= dict(zip(keys, _ranks(sign * table).unbind(1), strict=True))
        mean_rank = {
            label: torch.stack([ranks[key] for key in ranks if key.startswith(f"{label}.")]).mean(0)
            for label in labels
        }
        best = torch.stack(list(mean_rank.values())).argmin(0)
        return CompareResult(best.to(model.dtype), mean_rank, scores, ranks, attributions)


def _judging(judge: Method, method: Method) -> Method:
    """A metric that judges a method."""
    return judge.model_copy(
        update={"params": {**judge.params, "method": method.model_dump(mode="json")}}
    )


def _labels(methods: tuple[Method, ...]) -> list[str]:
    """A name for each, all different."""
    labels: list[str] = []
    for place, method in enumerate(methods):
        before = [item.plugin for item in methods[:place]].count(method.plugin)
        labels.append(f"{method.plugin}_{before + 1}" if before else method.plugin)
    return labels


def _directions(job: Job, judge: Method) -> dict[str, int]:
    """The numbers that a metric ranks by: 1 where low values are good, -1 where high ones are.

    Raises:
        InvalidRequest: it has none.
    """
    result = job.plugin(judge).plugin.result_type
    signs = {"low": 1, "high": -1}
    found = {
        item.name: signs[item.metadata["better"]]
        for item in fields(result)
        if item.metadata.get("better")
    }
    if not found:
        raise InvalidRequest.field(
            f"{judge.field}.plugin",
            f"{judge.plugin} does not say whether low or high numbers are good, and so cannot rank",
        )
    return found


def _ranks(values: Tensor) -> Tensor:
    """Ranks `(N, M)` of values, 1 for the lowest; almost equal ones share theirs."""
    first, second = values.unsqueeze(2), values.unsqueeze(1)
    near = _EQUAL * values.abs().amax(1)[:, None, None]
    lower = (second < first - near).sum(2)
    equal = ((second - first).abs() <= near).sum(2)
    return (1 + lower + (equal - 1) / 2).to(values.dtype)
