"""Gradient estimation: finite differences along groups of values or principal components."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.noise import generator
from interpret_server.plugin import AuxTensor, Batch, Classifier, InvalidRequest, Job, Plugin

from .attack import Attack, AttackResult, Attempt, drive
from .probes import Directions, Momentum, Probing, ascend_by_probes
from .scores import BudgetParams, ByScores

_GROUPS = 50


class GradientEstimationParams(BudgetParams):
    directions: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Directions of a step, two queries each: so many random groups of values, or "
        "so many of the first of `components`. Null: 50 groups, or all components.",
    )
    delta: float = Field(
        0.01,
        gt=0,
        le=1,
        description="How far probes lie from their point, as a share of the width of the bounds: "
        "each value of a group, or the Euclidean length along a component.",
    )
    step_size: float | None = Field(
        None,
        gt=0,
        description="Length of a step in the norm, in the units of the bounds; null: a tenth of "
        "epsilon, or in a box of half its width, value by value.",
    )
    momentum: float = Field(0.7, ge=0, lt=1, description="Weight of the gradients before.")


class GradientEstimation(ByScores, Attack, Plugin[GradientEstimationParams, AttackResult]):
    """Projected steps along a gradient from central differences in few directions.

    Without `components` the values of a row are dealt into random groups, anew at every step, and
    all values of a group get its mean slope `(f(x + delta v) - f(x - delta v)) / (2 delta |v|)`
    with v one in the group and zero elsewhere; with as many groups as values this is the gradient.
    With `components`, such as the principal components of the training data, the gradient is its
    projection onto them. One more query judges the point of each step. A row stops at its first
    success and leaves the batch.

    Source: Bhagoji, He, Li & Song 2018, "Practical Black-box Attacks on Deep Neural Networks using
    Efficient Query Mechanisms", section 3.
    """

    name = "gradient_estimation"
    tensors: ClassVar[Mapping[str, AuxTensor]] = {
        **Attack.tensors,
        "components": AuxTensor(
            "Directions to probe, `(N, k, *input_shape)`, of any length but zero; orthogonal ones "
            "give the gradient's projection.",
            like_input=False,
        ),
    }

    def run(
        self, model: Classifier, batch: Batch, params: GradientEstimationParams, job: Job
    ) -> AttackResult:
        directions, count = _directions(batch, params)
        attempt = Attempt.begin(model, batch, params, job)
        probing = Probing.of(job, params.budget, count, params.delta * model.scale)
        step = Momentum(attempt, params.step_size, 0.1, params.momentum)
        steps = ascend_by_probes(attempt, attempt.goal, directions, probing, step)
        drive(job, probing.passes(len(batch)), steps)
        return attempt.finish(job)


def _directions(batch: Batch, params: GradientEstimationParams) -> tuple[Directions, int]:
    """The directions, and how many there are in a step."""
    shape, components = batch.inputs.shape[1:], batch.tensors.get("components")
    if components is None:
        groups = min(params.directions or _GROUPS, shape.numel())
        return RandomGroups(batch.seeds, shape, groups), groups
    if components.shape[2:] != shape or not components.numel():
        raise InvalidRequest.field(
            "tensors.components",
            f"rows of shape {list(components.shape[1:])} are not several of {list(shape)}",
        )
    count = components.shape[1]
    if params.directions is not None and params.directions > count:
        raise InvalidRequest.field(
            "params.directions",
            f"{params.directions} directions, where there are {count} components",
        )
    length = torch.linalg.vector_norm(components.flatten(2), dim=2)
    if not (length > 0).all() or not length.isfinite().all():
        raise InvalidRequest.field("tensors.components", "a component is zero or not finite")
    return Components(components, length), params.directions or count


class Components(Directions):
    """The caller's directions, of unit length."""

    def __init__(self, components: Tensor, length: Tensor) -> None:
        self._components, self._length = components, length

    def draw(self, row: int, number: int) -> Tensor:
        return self._components[row, number] / self._length[row, number]


class RandomGroups(Directions):
    """All values of a row, dealt into groups of even size at random, anew at every step.

    Args:
        seeds: of the rows.
        shape: of a row.
        count: groups.
    """

    def __init__(self, seeds: Sequence[int], shape: torch.Size, count: int) -> None:
        self._generators = [generator(seed, 0) for seed in seeds]
        self._shape, self._count = shape, count
        self._dealt: dict[int, tuple[Tensor, ...]] = {}

    def draw(self, row: int, number: int) -> Tensor:
        if number == 0:
            order = torch.randperm(self._shape.numel(), generator=self._generators[row])
            self._dealt[row] = order.tensor_split(self._count)
        group = torch.zeros(self._shape.numel())
        group[self._dealt[row][number]] = 1
        return group.reshape(self._shape)
