"""Rectifiers that a file writes as `clamp(min=0)`, `maximum(x, 0)` or `x * (x > 0)`.

They differ from `relu` in the derivative at exactly 0 alone, where `relu` has 0, `clamp` 1 and
`maximum` 1/2. Each keeps its own; all are `nn.ReLU` and pass back through the same kernel, so that
guided backpropagation and deconvnet hold for them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .canonical import Builders, Call, Layer, NotCanonical
from .values import Origin, Value

RECTIFIERS = Builders()

_aten = torch.ops.aten
_ZEROS = (_aten.zeros_like.default, _aten.zeros.default, _aten.new_zeros.default)


def _rectify(x: Tensor) -> Tensor:
    """`clamp(x, min=0)`: 0 itself passes, since it exceeds the largest negative number."""
    below = -torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps
    return F.threshold(x, below, 0.0)


class ClampedReLU(nn.ReLU):
    """`clamp(x, min=0)`, with the derivative 1 at 0."""

    def forward(self, x: Tensor) -> Tensor:
        return _rectify(x)


class MaximumReLU(nn.ReLU):
    """`maximum(x, 0)`, with the derivative 1/2 at 0."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * F.relu(x) + 0.5 * _rectify(x)


class Clamp(nn.Module):
    """`torch.clamp` with constant limits; a limit may be absent."""

    def __init__(self, lower: float | None, upper: float | None) -> None:
        super().__init__()
        self.lower, self.upper = lower, upper

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.lower, self.upper)

    def extra_repr(self) -> str:
        return f"lower={self.lower}, upper={self.upper}"


def _is_zero(item: object) -> bool:
    """Whether an item is 0 whatever the input, alone or as a tensor."""
    if not isinstance(item, Value):
        return False
    if item.node is not None and item.node.target in _ZEROS:
        return True
    if item.origin is not Origin.CONSTANT:
        return False
    if item.is_tensor:
        return item.value.numel() > 0 and not bool(item.value.any())
    return type(item.value) in (int, float) and item.value == 0


def _floating(call: Call, name: str) -> Value:
    source = call.tensor(name)
    if source.origin is Origin.CONSTANT or not source.value.is_floating_point():
        raise NotCanonical
    return source


@RECTIFIERS.register("clamp", "clamp_min", "clamp_max")
def _clamp(call: Call) -> Layer:
    source = _floating(call, "self")
    limits = [call.items.get(name, Value(None)) for name in ("min", "max")]
    lower, upper = (call.constant(limit) for limit in limits)
    if upper is None and _is_zero(limits[0]) and _fits(source, limits[0]):
        return Layer(ClampedReLU(), source, "relu")
    if any(isinstance(limit, Tensor) for limit in (lower, upper)):
        raise NotCanonical
    if lower == 0:
        call.recorder.note(
            "clamp cuts off negative values like a rectifier, but guided backpropagation and "
            "deconvnet leave its gradient as it is"
        )
    return Layer(Clamp(lower, upper), source, "clamp")


@RECTIFIERS.register("maximum", "max")
def _maximum(call: Call) -> Layer:
    if "other" not in call.items:
        raise NotCanonical
    for name, other in (("self", "other"), ("other", "self")):
        if _is_zero(call.items[other]):
            source = _floating(call, name)
            if _fits(source, call.items[other]):
                return Layer(MaximumReLU(), source, "relu")
    raise NotCanonical


@RECTIFIERS.register("mul")
def _gate(call: Call) -> Layer:
    """`x * (x > 0)`, also with the comparison cast to the type of x."""
    for name, other in (("self", "other"), ("other", "self")):
        source, gate = call.items[name], call.items[other]
        if not isinstance(gate, Value) or gate.node is None or not isinstance(source, Value):
            continue
        node = gate.node
        if node.target is _aten.to.dtype:
            node = node.args[0]  # type: ignore[assignment]
        if (
            source.node is not None
            and node.target is _aten.gt.Scalar
            and node.args == (source.node, 0)
            and gate.value.shape == source.value.shape
        ):
            return Layer(nn.ReLU(), _floating(call, name), "relu")
    raise NotCanonical


def _fits(source: Value, zero: Value) -> bool:
    """Whether a limit changes neither the shape nor the type of a tensor."""
    if not zero.is_tensor:
        return True
    with torch.no_grad():
        joined = source.value + zero.value
    return joined.shape == source.value.shape and joined.dtype is source.value.dtype
