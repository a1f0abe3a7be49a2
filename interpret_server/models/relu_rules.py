"""Backward rules of rectifiers: guided backpropagation and the deconvolutional network.

The rule is applied where autograd calls a rectifier's backward kernel, so it holds for functional,
in-place and module forms alike, and for an archive that runs outside our graph.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_RECTIFIERS: frozenset[Any] = frozenset(
    {
        _aten.threshold_backward.default,
        _aten.hardtanh_backward.default,
        _aten.leaky_relu_backward.default,
        _aten._prelu_kernel_backward.default,
    }
)


class ReluRule(StrEnum):
    """How a gradient passes back through a rectifier with output y.

    PLAIN: `g * dy/dx`. GUIDED (Springenberg et al. 2014, section 3.4): `max(g, 0) * dy/dx`.
    DECONVNET (Zeiler & Fergus 2014, section 2.1): `max(g, 0)`.
    """

    PLAIN = "plain"
    GUIDED = "guided"
    DECONVNET = "deconvnet"


class _RuleMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, rule: ReluRule) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rule = rule
        self.hits: int = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in _RECTIFIERS:
            return func(*args, **(kwargs or {}))
        self.hits += 1
        gradient, *rest = args
        if self.rule is ReluRule.PLAIN:
            return func(gradient, *rest)
        positive = gradient.clamp(min=0)
        if func is _aten._prelu_kernel_backward.default:
            through, weight = func(positive, *rest)
            return (positive if self.rule is ReluRule.DECONVNET else through), weight
        return positive if self.rule is ReluRule.DECONVNET else func(positive, *rest)


@contextmanager
def relu_rule(rule: ReluRule) -> Iterator[None]:
    """Apply `rule` to every backward pass that runs inside the block, and nowhere else."""
    if rule is ReluRule.PLAIN:
        yield
        return
    with _RuleMode(rule):
        yield


def count_rectifiers(forward: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """How many rectifiers a backward pass of `forward` at `x` goes through."""
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        total = forward(leaf).sum()
        if not total.requires_grad:
            return 0
        with _RuleMode(ReluRule.PLAIN) as mode:
            torch.autograd.grad(total, leaf, allow_unused=True)
    return int(mode.hits)
