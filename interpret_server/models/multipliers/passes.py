"""From a target back to the input, through pairs of values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...errors import FailedPrecondition
from ..batching import InGroups
from ..classifier import Classifier
from ..execution.draft import Draft
from ..targets import Targets
from .operation import Operation
from .rules import multipliers_of
from .tape import Record, Slot, Step, record


@dataclass(frozen=True)
class Multipliers:
    """Multipliers of the inputs, with what the two passes gave.

    Args:
        inputs: `(N, *input_shape)`; their products with `x - baseline` sum to
            `objective - start`.
        objective: `(N,)`, the target's value at the input.
        start: `(N,)`, at the baseline.
        logits: `(N, K)` at the input, where the target is one of them.
        unruled: operators that pick other values at the baseline than at the input, which no
            multiplier tells.
    """

    inputs: Tensor
    objective: Tensor
    start: Tensor
    logits: Tensor | None
    unruled: tuple[str, ...]


def multipliers(model: Classifier, x: Tensor, baseline: Tensor, targets: Targets) -> Multipliers:
    """The multipliers of each row's target between its baseline and its input.

    The network runs as it was read, in the type of its inputs.

    Args:
        model: with gradients.
        x: `(N, *input_shape)`.
        baseline: the same shape.
        targets: one per row.

    Raises:
        FailedPrecondition: an operator has no multipliers, which the message names; or the network
            takes other steps at the baseline.
    """
    form = _form(model, targets.layer)
    ours, theirs = record(form, x), record(form, baseline)
    if not _same(ours, theirs):
        raise FailedPrecondition(
            f"{model.name} takes other steps at the baseline than at the input, so that there is "
            "no difference between the two to pass back"
        )
    with torch.enable_grad():
        end = ours.output.detach().requires_grad_()
        objective = targets.select(end)
    (gradient,) = torch.autograd.grad(objective.sum(), end)
    inputs, unruled = _back(ours, theirs, gradient)
    return Multipliers(
        inputs=torch.zeros_like(x) if inputs is None else inputs.to(x.dtype),
        objective=objective.detach(),
        start=targets.select(theirs.output),
        logits=ours.output if targets.layer is None else None,
        unruled=unruled,
    )


def _form(model: Classifier, layer: str | None) -> Callable[[Tensor], Tensor]:
    """The network as it was read, up to the logits or to a layer."""
    module = model.module
    if layer is None:
        return lambda x: module.head(module.body(module.normalise(x)))
    graph = model.plans.graph
    assert graph is not None  # layers can be read
    draft = Draft.of(graph, {}, (model.layer(layer).node,))
    compiled = draft.compile()
    plan = module.body.around(compiled) if isinstance(module.body, InGroups) else compiled
    return lambda x: plan(module.normalise(x))[0]


def _same(ours: Record, theirs: Record) -> bool:
    return (
        ours.last == theirs.last
        and len(ours.steps) == len(theirs.steps)
        and all(map(_alike, ours.steps, theirs.steps))
    )


def _alike(one: Step, other: Step) -> bool:
    if (one.operator, one.reads, one.writes) != (other.operator, other.reads, other.writes):
        return False
    settings = [
        [
            item
            for item in tree_leaves((s.args, s.kwargs), is_leaf=lambda i: isinstance(i, Slot))
            if not isinstance(item, Tensor)
        ]
        for s in (one, other)
    ]
    return len(settings[0]) == len(settings[1]) and all(map(_equal, *settings))


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))  # NaN is no other than NaN


def _back(ours: Record, theirs: Record, gradient: Tensor) -> tuple[Tensor | None, tuple[str, ...]]:
    """The multipliers of slot 0; the records' values are dropped on the way."""
    gradients = {} if ours.last is None else {ours.last: gradient}
    unruled: dict[str, None] = {}
    while ours.steps:
        step = ours.steps.pop()
        given = [None if slot is None else gradients.pop(slot, None) for slot in step.writes]
        if any(value is not None for value in given):
            operation = Operation(
                step,
                [ours.layouts[slot] for slot in step.reads],
                [ours.values.get(slot) for slot in step.reads],
                [theirs.values.get(slot) for slot in step.reads],
            )
            for slot, value in zip(step.reads, multipliers_of(operation, given), strict=True):
                if value is not None:
                    gradients[slot] = gradients[slot] + value if slot in gradients else value
            if operation.unruled:
                unruled[step.operator.overloadpacket.__name__] = None
        for number in step.writes:
            if number is not None:
                ours.values.pop(number, None)
                theirs.values.pop(number, None)
    return gradients.get(0), tuple(unruled)
