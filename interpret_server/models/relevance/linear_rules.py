"""Rules of layer-wise relevance propagation for layers with weights.

Notation: a layer gives `z_j = sum over i of a_i w_ij + b_j`, and `R_j` comes back to it. `x+` is
`max(x, 0)` and `x-` is `min(x, 0)`. A bias takes its share of the relevance with it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..execution.folding import with_weights

Change = Callable[[Tensor], Tensor]


def divided(relevance: Tensor, z: Tensor, epsilon: float = 0.0) -> Tensor:
    """`R / (z + epsilon * sign(z))`, with `sign(0) = 1`; 0 where that would divide by 0."""
    stable = torch.where(z < 0, z - epsilon, z + epsilon)
    zero = stable == 0
    return torch.where(zero, 0, relevance) / torch.where(zero, 1, stable)


def shares(
    function: Callable[..., Tensor],
    values: Sequence[Tensor],
    relevance: Tensor,
    epsilon: float = 0.0,
) -> tuple[Tensor, ...]:
    """What each of several values gets of the relevance of a function that is linear in each.

    `a_i * sum over j of dz_j/da_i * R_j / z_j`: the shares of all values together sum to the
    relevance for a linear function and for a norm, and to its k-fold for a product of k values.

    Args:
        function: from the values to z.
        values: the a, of any shapes.
        relevance: R, of the shape of z.
        epsilon: stabilises the division by z.
    """
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in values]
        z = function(*leaves)
        gradients = torch.autograd.grad(
            z, leaves, divided(relevance, z.detach(), epsilon), materialize_grads=True
        )
    return tuple(leaf.detach() * gradient for leaf, gradient in zip(leaves, gradients, strict=True))


class LinearRule(ABC):
    """How a layer with `weight` and `bias` hands relevance down to its input."""

    @abstractmethod
    def distribute(self, layer: nn.Module, a: Tensor, relevance: Tensor) -> Tensor:
        """The relevance of the input.

        Args:
            layer: linear or convolutional.
            a: its input.
            relevance: of its output.
        """


@dataclass(frozen=True)
class Epsilon(LinearRule):
    """`R_i = sum_j a_i w_ij / (z_j + epsilon sign(z_j)) R_j`; LRP-0 where epsilon is 0.

    Source: Bach et al. 2015, "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by
    Layer-Wise Relevance Propagation", section 3.
    """

    epsilon: float = 0.0

    def distribute(self, layer: nn.Module, a: Tensor, relevance: Tensor) -> Tensor:
        return shares(layer, (a,), relevance, self.epsilon)[0]


@dataclass(frozen=True)
class Gamma(LinearRule):
    """`R_i = sum_j a_i (w_ij + gamma w_ij+) / sum_i a_i (w_ij + gamma w_ij+) R_j`.

    For inputs and outputs of either sign, the contributions `a_i w_ij` that have the sign of `z_j`
    are those that count `1 + gamma` times. The bias is treated as a weight.

    Source: Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview".

    Args:
        gamma: how much more such contributions count.
        epsilon: as for `Epsilon`.
        rectified: no relevance comes to outputs below 0.
    """

    gamma: float
    epsilon: float = 0.0
    rectified: bool = False

    def distribute(self, layer: nn.Module, a: Tensor, relevance: Tensor) -> Tensor:
        def favour(part: Change) -> Change:
            return lambda weight: weight + self.gamma * part(weight)

        above, below = favour(_positive), favour(_negative)
        if self.rectified:
            return _of_parts(layer, a, relevance, above, below, self.epsilon)
        against = torch.where(layer(a) < 0, relevance, 0)
        found = _of_parts(layer, a, relevance - against, above, below, self.epsilon)
        if against.any():
            found = found + _of_parts(layer, a, against, below, above, self.epsilon)
        return found


@dataclass(frozen=True)
class AlphaBeta(LinearRule):
    """`R_i = sum_j (alpha (a_i w_ij)+ / z_j+ - beta (a_i w_ij)- / z_j-) R_j`, alpha - beta = 1.

    `z_j+` and `z_j-` sum the positive and the negative contributions, a bias among them.

    Source: Bach et al. 2015, section 3.
    """

    alpha: float = 1.0
    bias: bool = True

    def distribute(self, layer: nn.Module, a: Tensor, relevance: Tensor) -> Tensor:
        found = self.alpha * _of_parts(layer, a, relevance, _positive, _negative, bias=self.bias)
        if self.alpha == 1:
            return found
        against = _of_parts(layer, a, relevance, _negative, _positive, bias=self.bias)
        return found - (self.alpha - 1) * against


def z_plus() -> LinearRule:
    """`R_i = sum_j (a_i w_ij)+ / sum_i (a_i w_ij)+ R_j`, in which biases get nothing.

    Source: Montavon et al. 2017, "Explaining NonLinear Classification Decisions with Deep Taylor
    Decomposition".
    """
    return AlphaBeta(1.0, bias=False)


@dataclass(frozen=True)
class ZBox(LinearRule):
    """`R_i = sum_j s_ij / sum_i s_ij R_j`, `s_ij = a_i w_ij - l_i w_ij+ - h_i w_ij-`.

    Source: Montavon et al. 2017, for inputs between l and h.

    Args:
        low: l, one row.
        high: h, one row.
    """

    low: Tensor
    high: Tensor

    def distribute(self, layer: nn.Module, a: Tensor, relevance: Tensor) -> Tensor:
        whole = _changed(layer, _same, bias=None)
        upper, lower = (_changed(layer, part, bias=None) for part in (_positive, _negative))

        def z(a: Tensor, low: Tensor, high: Tensor) -> Tensor:
            values: Tensor = whole(a) - upper(low) - lower(high)
            return values

        ends = (self.low.expand_as(a), self.high.expand_as(a))
        return sum(shares(z, (a, *ends), relevance), torch.zeros_like(a))


@dataclass(frozen=True)
class WeightsAlone(LinearRule):
    """`R_i = sum_j v_ij / sum_i v_ij R_j`: `v = w^2` (the w-squared rule) or `v = 1` (flat).

    Source: Montavon et al. 2017 (w-squared), Bach et al. 2015 and Lapuschkin et al. 2019 (flat).
    """

    flat: bool

    def distribute(self, layer: nn.Module, a: Tensor, relevance: Tensor) -> Tensor:
        changed = _changed(layer, torch.ones_like if self.flat else torch.square, bias=None)
        return shares(changed, (torch.ones_like(a),), relevance)[0]


def _same(value: Tensor) -> Tensor:
    return value


def _positive(value: Tensor) -> Tensor:
    return value.clamp(min=0)


def _negative(value: Tensor) -> Tensor:
    return value.clamp(max=0)


def _changed(layer: Any, weight: Change, bias: Change | None) -> nn.Module:
    """The layer with other weights; `bias` None means without one."""
    own = layer.bias
    return with_weights(
        layer,
        weight=weight(layer.weight.detach()),
        bias=None if own is None or bias is None else bias(own.detach()),
    )


def _of_parts(
    layer: nn.Module,
    a: Tensor,
    relevance: Tensor,
    of_positive: Change,
    of_negative: Change,
    epsilon: float = 0.0,
    *,
    bias: bool = True,
) -> Tensor:
    """Shares in `z = a+ u + a- v + b`.

    Args:
        of_positive: makes u of the weights, and b of the bias.
        of_negative: makes v of the weights.
    """
    first = _changed(layer, of_positive, of_positive if bias else None)
    if not (a < 0).any():
        return shares(first, (a,), relevance, epsilon)[0]
    second = _changed(layer, of_negative, None)

    def z(above: Tensor, below: Tensor) -> Tensor:
        values: Tensor = first(above) + second(below)
        return values

    above, below = shares(z, (a.clamp(min=0), a.clamp(max=0)), relevance, epsilon)
    return above + below
