"""How relevance comes back through operators without weights.

A rule takes the operator as a function of the values that relevance goes to, those values, and the
relevance of the result; it gives the relevance of each value.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .linear_rules import LinearRule, divided, shares

Values = tuple[Tensor, ...]
Rule = Callable[[Callable[..., Any], Values, Tensor], Values]


def unchanged(_: Callable[..., Any], values: Values, relevance: Tensor) -> Values:
    """Element by element; summed where the value was broadcast."""
    (value,) = values
    return (relevance.sum_to_size(value.shape),)


def proportional(epsilon: float) -> Rule:
    """In proportion to what each value contributes to a sum."""

    def rule(call: Callable[..., Any], values: Values, relevance: Tensor) -> Values:
        return shares(call, values, relevance, epsilon)

    return rule


def uniform(epsilon: float, factors: int) -> Rule:
    """`1 / factors` for each factor of a product, in proportion to contributions within it.

    For a matrix product O = A V: `R(A_ji) = sum_p A_ji V_ip R_jp / (2 O_jp + epsilon)`.

    Source: Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for
    Transformers", section 3.3.
    """

    def rule(call: Callable[..., Any], values: Values, relevance: Tensor) -> Values:
        return tuple(part / factors for part in shares(call, values, relevance, epsilon))

    return rule


def softmax(call: Callable[..., Any], values: Values, relevance: Tensor) -> Values:
    """`R_i = x_i (R_i - s_i sum_j R_j)`, the Taylor expansion at x; scores of -inf get nothing.

    Source: Achtibat et al. 2024, section 3.3.
    """
    (x,) = values
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        weights = call(leaf)
        (slope,) = torch.autograd.grad(weights, leaf, divided(relevance, weights.detach()))
    return (torch.where(x.isfinite(), x, 0) * slope,)


def weighted(layer: nn.Module, rule: LinearRule) -> Rule:
    """A layer with weights, by one of its own rules."""
    return lambda _, values, relevance: (rule.distribute(layer, values[0], relevance),)


def half_gated(axis: int, share: float) -> Rule:
    """`a * sigmoid(b)` of the halves a and b along an axis: a gets all but `share`, b gets that."""

    def rule(_: Callable[..., Any], values: Values, relevance: Tensor) -> Values:
        return (torch.cat([(1 - share) * relevance, share * relevance], axis),)

    return rule


class _Relay(torch.autograd.Function):
    """An operator whose backward pass hands down relevance instead of gradients."""

    @staticmethod
    def forward(ctx: Any, call: Callable[..., Any], rule: Rule, *values: Tensor) -> Tensor:
        ctx.call, ctx.rule = call, rule
        ctx.save_for_backward(*values)
        result: Tensor = call(*values)
        return result.clone() if any(result is value for value in values) else result

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:
        return None, None, *ctx.rule(ctx.call, ctx.saved_tensors, relevance)


def relayed(call: Callable[..., Any], rule: Rule, *values: Tensor) -> Tensor:
    """`call(*values)`, whose backward pass hands down relevance by a rule."""
    result: Tensor = _Relay.apply(call, rule, *values)  # type: ignore[no-untyped-call]
    return result
