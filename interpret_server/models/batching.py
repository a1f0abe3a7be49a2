"""Any number of rows through a network that was exported for one batch size."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as hooks

from .relu_rules import ReluRule, relu_rule
from .verification import agree, difference, float32_noise

_REFUSALS = (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError)


class InGroups(nn.Module):
    """Runs `body` on `size` rows at a time; a short last group is filled up by repetition.

    Args:
        body: from `(size, ...)` to a tensor, or a tuple of tensors, of `size` rows.
        size: the batch size that `body` takes.
    """

    def __init__(self, body: nn.Module, size: int) -> None:
        super().__init__()
        self.body, self.size = body, size

    def around(self, body: nn.Module) -> "InGroups":
        """The same form of another body that takes as many rows."""
        return InGroups(body, self.size)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`(N, ...)` to what `body` gives, with N rows."""
        single = True
        groups: list[tuple[Tensor, ...]] = []
        for rows in torch.split(x, self.size) if len(x) else (x,):
            outputs = self.body(self._filled(rows))
            single = isinstance(outputs, Tensor)
            values = (outputs,) if single else tuple(outputs)
            groups.append(tuple(self._rows(value)[: len(rows)] for value in values))
        joined = tuple(torch.cat(values) for values in zip(*groups, strict=True))
        return joined[0] if single else joined

    def _filled(self, rows: Tensor) -> Tensor:
        missing = self.size - len(rows)
        if not missing:
            return rows
        last = rows[-1:] if len(rows) else rows.new_zeros(1, *rows.shape[1:])
        return torch.cat([rows, last.expand(missing, *rows.shape[1:])])

    def _rows(self, value: Tensor) -> Tensor:
        """A file for one row may have dropped its batch axis."""
        whole = value.dim() and len(value) == self.size
        return value if whole or self.size > 1 else value[None]


class RowsAtOnce(InGroups):
    """Runs `body`, which takes one row, on all rows at once by `torch.vmap`.

    One at a time while anything of it is hooked, for a hook is to see whole tensors; and from then
    on where `torch.vmap` turns out not to run it.

    Args:
        body: from `(1, ...)` to a tensor, or a tuple of tensors, of one row.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__(body, 1)
        self._alone = False

    def around(self, body: nn.Module) -> Self:
        """The same form of another body that takes one row."""
        return type(self)(body)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`(N, ...)` to what `body` gives, with N rows."""
        if self._alone or len(x) < 2 or _is_hooked(self.body):
            return super().forward(x)
        try:
            return self.together(x)
        except _REFUSALS:
            values = super().forward(x)
            self._alone = True
            return values

    def together(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """As `forward`, or the error of `torch.vmap`."""
        values: Tensor | tuple[Tensor, ...] = torch.vmap(self._row)(x)
        return values

    def _row(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = self.body(x[None])
        if isinstance(outputs, Tensor):
            return self._rows(outputs)[0]
        return tuple(self._rows(value)[0] for value in outputs)


def all_rows_at_once(loop: InGroups, probes: Tensor) -> InGroups:
    """`loop`, or the form that runs its rows at once where that is right on probes.

    Values, gradients and gradients under the rectifier rules are compared. No clock decides: the
    two round differently, and a model's answers must not depend on what else the machine did.

    Args:
        loop: of one row.
        probes: rows `(N, ...)`.
    """
    if loop.size != 1 or not isinstance(loop.body, fx.GraphModule):
        return loop
    candidate = RowsAtOnce(loop.body)
    try:
        with _rules_alone():
            with torch.no_grad():  # which can take other kernels
                candidate.together(probes)
            right = _is_right(candidate, loop, probes)
    except _REFUSALS:
        return loop
    return candidate if right else loop


@contextmanager
def _rules_alone() -> Iterator[None]:
    """`torch.vmap` refuses what it has no rule for, rather than loop over it with a warning."""
    functorch: Any = torch._C._functorch
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(True)


def _is_right(candidate: RowsAtOnce, loop: InGroups, probes: Tensor) -> bool:
    def noise() -> float:
        return float32_noise(loop, probes)

    for rule in ReluRule:
        pairs = zip(
            _gradients(candidate.together, probes, rule),
            _gradients(loop, probes, rule),
            strict=True,
        )
        if not all(agree(difference(ours, value), value.dtype, noise) for ours, value in pairs):
            return False
    return True


def _gradients(
    module: Callable[[Tensor], Tensor | tuple[Tensor, ...]], x: Tensor, rule: ReluRule
) -> tuple[Tensor, ...]:
    """The values of a module, and their gradient where they have one."""
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        outputs = module(leaf)
        values = (outputs,) if isinstance(outputs, Tensor) else outputs
        weighed = [value.cumsum(-1).sum() for value in values if value.requires_grad]
    if not weighed:
        return values
    with relu_rule(rule):
        (gradient,) = torch.autograd.grad(torch.stack(weighed).sum(), leaf, allow_unused=True)
    return values if gradient is None else (*values, gradient)


def _is_hooked(module: nn.Module) -> bool:
    own = (
        (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
        for part in module.modules()
    )
    shared = (
        hooks._global_forward_hooks,
        hooks._global_forward_pre_hooks,
        hooks._global_backward_hooks,
        hooks._global_backward_pre_hooks,
    )
    return any(chain(shared, chain.from_iterable(own))) or any(
        part._backward_pre_hooks for part in module.modules()
    )
