"""One operator between two sets of arguments."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import FailedPrecondition
from .operators import INDEXED, varies
from .tape import Layout, Step

Gradients = list[Tensor | None]


class Operation:
    """An operator's call in a pass of the input and in one of the baseline.

    Args:
        step: of both passes.
        layouts: of what it reads.
        x: the values that it reads at the input; None where the multipliers do not depend on them.
        baseline: the same at the baseline.

    Attributes:
        moving: which of those multipliers are wanted for: floating-point values, and others where
            they differ.
        unruled: the operator picks values by whole numbers that differ, or gives such numbers, so
            that what it passes back is not all.
    """

    def __init__(
        self,
        step: Step,
        layouts: Sequence[Layout],
        x: Sequence[Tensor | None],
        baseline: Sequence[Tensor | None],
    ) -> None:
        self.step, self.layouts = step, layouts
        self.x, self.baseline = list(x), list(baseline)
        self.moving: list[int] = []
        self.unruled = False
        for index, (layout, ours, theirs) in enumerate(zip(layouts, x, baseline, strict=True)):
            if varies(layout.dtype):
                self.moving.append(index)
            elif ours is not None and theirs is not None and not torch.equal(ours, theirs):
                if step.operator.overloadpacket in INDEXED:
                    self.unruled = True
                else:
                    self.moving.append(index)

    def ends(self, dtype: torch.dtype | None) -> tuple[list[Tensor], list[Tensor]]:
        """The arguments at the input and at the baseline; floating-point ones in a type."""

        def cast(values: list[Tensor | None]) -> list[Tensor]:
            every = [self._value(index, value) for index, value in enumerate(values)]
            return [v.to(dtype) if dtype and v.is_floating_point() else v for v in every]

        return cast(self.x), cast(self.baseline)

    def numbers(self) -> tuple[list[Tensor], list[Tensor]]:
        """The same, with those that differ as floating-point numbers, so that they mix."""
        ours, theirs = self.ends(None)
        kinds = [layout.dtype for layout in self.layouts if varies(layout.dtype)]
        for index in self.moving:
            if not varies(ours[index].dtype):
                dtype = kinds[0] if kinds else torch.float64
                ours[index], theirs[index] = ours[index].to(dtype), theirs[index].to(dtype)
        return ours, theirs

    def call(self, values: Sequence[Tensor]) -> list[Any]:
        """The results, flat."""
        return self.step.call(values)

    def _value(self, index: int, value: Tensor | None) -> Tensor:
        return self.layouts[index].blank() if value is None else value


def gradient_at(
    operation: Operation, values: Sequence[Tensor], gradients: Gradients
) -> list[Tensor]:
    """The ordinary gradients of what moves, at some values of the arguments.

    Args:
        operation: to differentiate.
        values: of all that it reads.
        gradients: of its results.

    Raises:
        FailedPrecondition: naming an operator without a derivative.
    """
    leaves = [
        value.detach().requires_grad_() if index in operation.moving else value
        for index, value in enumerate(values)
    ]
    wanted = [leaves[index] for index in operation.moving]
    try:
        with torch.enable_grad():
            results = operation.call(leaves)
        told = [
            (result, gradient)
            for result, gradient in zip(results, gradients, strict=True)
            if gradient is not None
        ]
        continuous = [pair for pair in told if varies(pair[0].dtype)]
        operation.unruled |= len(continuous) < len(told)
        if not continuous:
            return [torch.zeros_like(leaf) for leaf in wanted]
        pairs = [(value, g.to(value.dtype)) for value, g in continuous if value.requires_grad]
        if not pairs:
            raise NotImplementedError
        found: tuple[Tensor, ...] = torch.autograd.grad(
            [value for value, _ in pairs],
            wanted,
            [gradient for _, gradient in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
    except (RuntimeError, NotImplementedError) as error:
        raise FailedPrecondition(
            f"the operator {operation.step.operator.overloadpacket.__name__} has no derivative, "
            "and no rule that takes its place"
        ) from error
    return list(found)


def placed(operation: Operation, found: Sequence[Tensor]) -> Gradients:
    """What was found for those that move, among all that an operation reads."""
    every: Gradients = [None] * len(operation.layouts)
    for index, value in zip(operation.moving, found, strict=True):
        every[index] = value
    return every
