"""Statically quantised archives as graphs in floating point that round as the original does.

A quantised tensor is carried as the numbers that it stands for. Every operator computes in
floating point on dequantised weights and its result is rounded to the scale and zero point that
the file gives, so it differs from the integer kernel by the rounding of a tie, one step at most.
The gradient of rounding is straight-through: 1 inside the range that the type can hold, 0 outside.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..lowered import Unlowerable
from .values import Item, Quantised, Value, concrete

if TYPE_CHECKING:
    from .operators import Operators

_aten = torch.ops.aten
_NONE = Value(None)
_TYPES = {12: torch.qint8, 13: torch.quint8, 14: torch.qint32}
_RANGES = {torch.qint8: (-128, 127), torch.quint8: (0, 255)}
# Operators whose results lie on the grid of their argument.
_EXACT = frozenset(
    {
        "chunk", "clone", "contiguous", "dropout", "expand", "flatten", "max_pool1d", "max_pool2d",
        "permute", "relu", "reshape", "select", "slice", "split", "squeeze", "t", "transpose",
        "unsqueeze", "view", "unbind", "upsample_nearest2d", "amax", "channel_shuffle",
        "pixel_shuffle", "narrow", "repeat", "flip", "roll",
    }
)  # fmt: skip
_ROUNDED = frozenset(
    {
        "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool2d", "avg_pool3d", "mean", "clamp",
        "hardtanh", "leaky_relu", "elu", "upsample_bilinear2d", "cat", "threshold", "hardswish",
    }
)  # fmt: skip
_FIXED = {  # operators whose result has a grid of its own
    "sigmoid": (1 / 256, 0),
    "hardsigmoid": (1 / 256, 0),
    "tanh": (2 / 256, 128),
}
_ABOUT = ("aten::size", "aten::dim", "aten::len", "aten::numel", "prim::ndim", "prim::shape")


class Quantiser:
    """The quantised operators of one graph.

    Args:
        operators: where their parts run.
        enabled: whether a straight-through gradient was asked for.
    """

    def __init__(self, operators: "Operators", enabled: bool) -> None:
        self.operators, self.enabled = operators, enabled

    def takes(self, kind: str, items: Sequence[Item]) -> bool:
        """Whether an operator works on quantised tensors, or makes them."""
        if kind.startswith(("quantized::", "aten::quantize_per")):
            return True
        if not kind.startswith(("aten::", "prim::")) or kind in _CONTAINERS:
            return False
        return any(_quantised(item) for item in items)

    def run(self, kind: str, schema: str, items: Sequence[Item]) -> Item:
        """What an operator gives.

        Raises:
            Unlowerable: it has no such form, or none was asked for.
        """
        if not self.enabled:
            raise Unlowerable(
                f"{kind} computes with quantised tensors, which carry no gradient"
                f"{self.operators.recorder.where()}"
            )
        name = kind.partition("::")[2]
        if kind.startswith("quantized::"):
            return self._own(kind, name, items)
        match name:
            case "quantize_per_tensor":
                return self.rounded(items[0], items[1], items[2], _TYPES.get(concrete(items[3])))
            case "dequantize":
                return items[0].values
            case "q_scale":
                return Value(items[0].scale)
            case "q_zero_point":
                return Value(items[0].zero)
            case "is_quantized":
                return Value(True)
            case "dtype":
                return Value(next(code for code, t in _TYPES.items() if t is items[0].dtype))
        return self._plain(kind, name, schema, items)

    def _plain(self, kind: str, name: str, schema: str, items: Sequence[Item]) -> Item:
        """An ordinary operator on quantised tensors."""
        first = next(found for item in items for found in _found(item))
        values = [_values(item) for item in items]
        base = name.removesuffix("_")
        if kind in _ABOUT or kind.startswith("prim::"):
            return self.operators.structure.run(kind, values)
        if base not in _EXACT | _ROUNDED and base not in _FIXED:
            raise self._missing(kind)
        function = torch._C.parse_schema(schema)
        result = self.operators.run(function, values)
        if base in _EXACT:
            return _wrapped(result, first)
        scale, zero = _FIXED.get(base, (first.scale, first.zero))
        return self.rounded(result, Value(scale), Value(zero), first.dtype)

    def _own(self, kind: str, name: str, items: Sequence[Item]) -> Item:
        base = name.removesuffix("_relu")
        handler = _HANDLERS.get(base)
        if handler is None:
            raise self._missing(kind)
        result, scale, zero = handler(self, base, items)
        if name != base:
            result = self.call(_aten.relu.default, result)
        dtype = next((found.dtype for item in items for found in _found(item)), torch.quint8)
        return self.rounded(result, scale, zero, dtype)

    def _missing(self, kind: str) -> Unlowerable:
        where = self.operators.recorder.where()
        return Unlowerable(f"{kind} on quantised tensors has no straight-through form{where}")

    def call(self, function: Any, *items: Item) -> Item:
        """Run an operator on what quantised tensors stand for."""
        return self.operators.call(function, [_values(item) for item in items])

    def rounded(self, values: Item, scale: Item, zero: Item, dtype: Any) -> Quantised:
        """Round to a grid: `scale * (q - zero)` with q of the type."""
        if dtype not in _RANGES:
            raise Unlowerable(f"quantisation to {dtype} is not supported")
        lowest, highest = _RANGES[dtype]
        step, offset = float(concrete(scale)), int(concrete(zero))
        limits = [Value(step), Value(offset), Value(lowest), Value(highest)]
        result = self.operators.call(
            _aten.fake_quantize_per_tensor_affine.default, [values, *limits]
        )
        return Quantised(result, step, offset, dtype)


_CONTAINERS = frozenset(
    {
        "prim::ListConstruct", "prim::TupleConstruct", "prim::TupleUnpack", "prim::ListUnpack",
        "prim::TupleIndex", "prim::DictConstruct", "aten::__getitem__", "aten::append",
        "aten::_set_item", "prim::unchecked_cast", "prim::device", "aten::__is__",
        "aten::__isnot__", "aten::__contains__", "aten::keys", "aten::values", "aten::items",
        "prim::unchecked_unwrap_optional", "aten::_unwrap_optional", "prim::NamedTupleConstruct",
    }
)  # fmt: skip


def _quantised(item: Item) -> bool:
    return any(True for _ in _found(item))


def _found(item: Item) -> Sequence[Quantised]:
    if isinstance(item, Quantised):
        return [item]
    if isinstance(item, (list, tuple)):
        return [found for element in item for found in _found(element)]
    return []


def _values(item: Item) -> Item:
    if isinstance(item, Quantised):
        return item.values
    if isinstance(item, (list, tuple)):
        return type(item)(_values(element) for element in item)
    return item


def _wrapped(result: Item, like: Quantised) -> Item:
    if isinstance(result, (list, tuple)):
        return type(result)(_wrapped(element, like) for element in result)
    return Quantised(result, like.scale, like.zero, like.dtype)


# Operators of the namespace `quantized`: their result in floating point, its scale and zero point.

_Result = tuple[Item, Item, Item]
_Handler = Callable[[Quantiser, str, Sequence[Item]], _Result]


def _weights(item: Item, unpack: Any) -> tuple[Value, Value]:
    """The dequantised weight and the bias of packed parameters."""
    weight, bias = unpack(item.value)
    owner = item.path.split("._packed_params")[0]
    return (
        Value(weight.dequantize(), path=f"{owner}.weight"),
        Value(None if bias is None else bias.detach(), path=f"{owner}.bias"),
    )


def _convolution(quantiser: Quantiser, name: str, items: Sequence[Item]) -> _Result:
    x, packed, scale, zero = items
    axes = int(name[-2])
    own: Any = torch.ops.quantized
    weight, bias = _weights(packed, getattr(own, f"{name}_unpack"))
    settings = packed.value
    names = ("stride", "padding", "output_padding", "dilation")
    stride, padding, output_padding, dilation = (
        [Value(int(number)) for number in getattr(settings, setting)()[-axes:]] for setting in names
    )
    groups = Value(int(settings.groups()))
    transposed = Value(name.startswith("conv_transpose"))
    result = quantiser.call(
        _aten.convolution.default,
        *(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups),
    )
    return result, scale, zero


def _linear(quantiser: Quantiser, name: str, items: Sequence[Item]) -> _Result:
    x, packed, scale, zero = items
    weight, bias = _weights(packed, torch.ops.quantized.linear_unpack)
    return quantiser.call(_aten.linear.default, x, weight, bias), scale, zero


def _sum(quantiser: Quantiser, name: str, items: Sequence[Item]) -> _Result:
    a, b, scale, zero = items
    return quantiser.call(_aten.add.Tensor, a, b, Value(1)), scale, zero


def _product(quantiser: Quantiser, name: str, items: Sequence[Item]) -> _Result:
    a, b, scale, zero = items
    return quantiser.call(_aten.mul.Tensor, a, b), scale, zero


def _matrix_product(quantiser: Quantiser, name: str, items: Sequence[Item]) -> _Result:
    a, b, scale, zero = items
    return quantiser.call(_aten.matmul.default, a, b), scale, zero


def _concatenation(quantiser: Quantiser, name: str, items: Sequence[Item]) -> _Result:
    parts, axis, scale, zero = items
    result = quantiser.call(_aten.cat.default, parts, axis)
    first: Quantised = parts[0]
    if concrete(scale) is None:
        return result, Value(first.scale), Value(first.zero)
    return result, scale, zero


def _activation(function: Any) -> _Handler:
    def handler(quantiser: Quantiser, name: str, items: Sequence[Item]) -> _Result:
        x, scale, zero = items
        return quantiser.call(function, x), scale, zero

    return handler


def _leaky_relu(quantiser: Quantiser, name: str, items: Sequence[Item]) -> _Result:
    x, slope, _, scale, zero = items
    return quantiser.call(_aten.leaky_relu.default, x, slope), scale, zero


def _elu(quantiser: Quantiser, name: str, items: Sequence[Item]) -> _Result:
    x, scale, zero, alpha, factor, inner = items
    return quantiser.call(_aten.elu.default, x, alpha, factor, inner), scale, zero


def _relu6(quantiser: Quantiser, name: str, items: Sequence[Item]) -> _Result:
    x = items[0]
    result = quantiser.call(_aten.hardtanh.default, x, Value(0.0), Value(6.0))
    return result, Value(x.scale), Value(x.zero)


def _softmax(quantiser: Quantiser, name: str, items: Sequence[Item]) -> _Result:
    x, axis, scale, zero = items
    return quantiser.call(_aten.softmax.int, x, axis, _NONE), scale, zero


def _batch_norm(quantiser: Quantiser, name: str, items: Sequence[Item]) -> _Result:
    x, weight, bias, mean, variance, epsilon, scale, zero = items
    settings = (Value(False), Value(0.0), epsilon, Value(False))
    result = quantiser.call(_aten.batch_norm.default, x, weight, bias, mean, variance, *settings)
    return result, scale, zero


def _layer_norm(quantiser: Quantiser, name: str, items: Sequence[Item]) -> _Result:
    x, shape, weight, bias, epsilon, scale, zero = items
    result = quantiser.call(_aten.layer_norm.default, x, shape, weight, bias, epsilon, Value(False))
    return result, scale, zero


_HANDLERS: dict[str, _Handler] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution),
    "linear": _linear,
    "add": _sum,
    "mul": _product,
    "matmul": _matrix_product,
    "cat": _concatenation,
    "hardswish": _activation(_aten.hardswish.default),
    "sigmoid": _activation(_aten.sigmoid.default),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "relu6": _relu6,
    "softmax": _softmax,
    **dict.fromkeys(("batch_norm", "batch_norm1d", "batch_norm2d", "batch_norm3d"), _batch_norm),
    "layer_norm": _layer_norm,
}
