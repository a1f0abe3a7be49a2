"""Core ATen and backend operators as the composite operators that they came from.

A program after `run_decompositions` has no `batch_norm` but `_native_batch_norm_legit_no_training`,
and one that was exported for CUDA may have kernels that exist on that device alone.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..torchscript.values import DTYPE_CODES, Item, Origin, Value
from . import quantised

if TYPE_CHECKING:
    from .walker import Walker

_aten = torch.ops.aten
_FLOAT32 = DTYPE_CODES[torch.float32]

Arguments = dict[str, Item]
Composite = Callable[["Walker", Arguments], Item]

COMPOSITES: dict[str, Composite] = {
    "quantized_decomposed::quantize_per_tensor": quantised.quantize,
    "quantized_decomposed::quantize_per_channel": quantised.quantize,
    "quantized_decomposed::dequantize_per_tensor": quantised.dequantize,
    "quantized_decomposed::dequantize_per_channel": quantised.dequantize,
    "quantized_decomposed::choose_qparams": quantised.choose_qparams,
}
"""By name with namespace; a composite may give NotImplemented where the operator stays."""


def _register(*names: str) -> Callable[[Composite], Composite]:
    def decorate(composite: Composite) -> Composite:
        COMPOSITES.update({f"aten::{name}": composite for name in names})
        return composite

    return decorate


def _only(result: Item, count: int) -> tuple[Item, ...]:
    """A layer's result in the place of several, of which inference uses the first."""
    return (result, *(Value(None) for _ in range(count - 1)))


@_register(
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit_functional",
    "_batch_norm_with_update",
    "_batch_norm_with_update_functional",
    "_batch_norm_no_update",
    "_native_batch_norm_legit",
    "native_batch_norm",
)
def _batch_norm(walker: "Walker", arguments: Arguments) -> Item:
    if arguments.get("running_mean", Value(None)).value is None:
        return NotImplemented
    result = walker.call(
        _aten.batch_norm.default,
        arguments["input"],
        arguments["weight"],
        arguments["bias"],
        arguments["running_mean"],
        arguments["running_var"],
        arguments.get("training", Value(False)),
        arguments["momentum"],
        arguments["eps"],
        False,
    )
    return _only(result, 5)


@_register("native_layer_norm")
def _layer_norm(walker: "Walker", arguments: Arguments) -> Item:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    return _only(walker.call(_aten.layer_norm.default, *(arguments[name] for name in names)), 3)


@_register("native_group_norm")
def _group_norm(walker: "Walker", arguments: Arguments) -> Item:
    names = ("input", "group", "weight", "bias", "eps")
    return _only(walker.call(_aten.group_norm.default, *(arguments[name] for name in names)), 3)


@_register("native_dropout")
def _dropout(walker: "Walker", arguments: Arguments) -> Item:
    train = arguments["train"].value is not False
    result = walker.call(_aten.dropout.default, arguments["input"], arguments["p"], train)
    return _only(result, 2)


def _register_softmax(name: str, target: Any) -> None:
    def composite(walker: "Walker", arguments: Arguments) -> Item:
        dtype = _FLOAT32 if arguments["half_to_float"].value else None
        return walker.call(target, arguments["self"], arguments["dim"], dtype)

    COMPOSITES[f"aten::{name}"] = composite


_register_softmax("_softmax", _aten.softmax.int)
_register_softmax("_log_softmax", _aten.log_softmax.int)


@_register("_adaptive_avg_pool2d")
def _adaptive_avg_pool2d(walker: "Walker", arguments: Arguments) -> Item:
    return walker.call(
        _aten.adaptive_avg_pool2d.default, arguments["self"], arguments["output_size"]
    )


@_register("_adaptive_avg_pool3d")
def _adaptive_avg_pool3d(walker: "Walker", arguments: Arguments) -> Item:
    return walker.call(
        _aten.adaptive_avg_pool3d.default, arguments["self"], arguments["output_size"]
    )


@_register("_to_copy")
def _to_copy(walker: "Walker", arguments: Arguments) -> Item:
    """Another data type; the device is the server's choice."""
    value, dtype = arguments["self"], arguments["dtype"]
    if dtype.value is None or dtype.value == DTYPE_CODES.get(value.value.dtype):
        return walker.call(_aten.clone.default, value)
    return walker.call(_aten.to.dtype, value, dtype)


@_register("as_strided")
def _as_strided(walker: "Walker", arguments: Arguments) -> Item:
    """The tensor itself, where its own strides were only written down."""
    value, offset = arguments["self"], arguments["storage_offset"]
    sizes = [item.value for item in arguments["size"]]
    strides = [item.value for item in arguments["stride"]]
    same = sizes == list(value.value.shape) and all(
        size == 1 or stride == own
        for size, stride, own in zip(sizes, strides, value.value.stride(), strict=True)
    )
    return value if same and not offset.value else NotImplemented


@_register("clamp")
def _clamp(walker: "Walker", arguments: Arguments) -> Item:
    """The clamp inside a decomposed hard sigmoid or hard swish is no rectifier."""
    value = arguments["self"]
    limits = [arguments[name] for name in ("min", "max")]
    made = walker.made_by(value)
    if made is None or made[0] != "add" or any(limit.is_tensor for limit in limits):
        return NotImplemented
    shift = made[1][1]
    if limits[0].value != 0 or limits[1].value not in (None, 6) or shift.is_tensor:
        return NotImplemented
    if shift.value != 3:
        return NotImplemented
    items = [value, *limits]
    with torch.no_grad():
        result = torch.clamp(*(item.value for item in items))
    return walker.recorder.function(
        _aten.clamp.default, items, {}, result, value.origin, kind="clamp"
    )


@_register("where")
def _where(walker: "Walker", arguments: Arguments) -> Item:
    """`where(x > 0, x, x * slope)` is a leaky or parametric rectifier."""
    if "self" not in arguments:
        return NotImplemented
    value, other = arguments["self"], arguments["other"]
    condition, product = walker.made_by(arguments["condition"]), walker.made_by(other)
    if condition is None or product is None or condition[0] != "gt" or product[0] != "mul":
        return NotImplemented
    compared, limit = condition[1]
    factors = [item for item in product[1] if item is not value]
    if compared is not value or limit.is_tensor or limit.value != 0 or len(factors) != 1:
        return NotImplemented
    (slope,) = factors
    if slope.origin is not Origin.CONSTANT:
        return NotImplemented
    if not slope.is_tensor:
        return walker.call(_aten.leaky_relu.default, value, slope)
    axes = value.value.dim() - slope.value.dim()
    if any(size != 1 and axis + axes != 1 for axis, size in enumerate(slope.value.shape)):
        return NotImplemented
    return walker.call(_aten.prelu.default, value, walker.call(_aten.reshape.default, slope, [-1]))


@_register("_prelu_kernel")
def _prelu(walker: "Walker", arguments: Arguments) -> Item:
    weight = arguments["weight"]
    if weight.origin is not Origin.CONSTANT:
        return NotImplemented
    return walker.call(
        _aten.prelu.default, arguments["self"], walker.call(_aten.reshape.default, weight, [-1])
    )


@_register(
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math",
)
def _attention(walker: "Walker", arguments: Arguments) -> Item:
    mask = arguments.get("attn_mask", arguments.get("attn_bias", Value(None)))
    result = walker.call(
        _aten.scaled_dot_product_attention.default,
        arguments["query"],
        arguments["key"],
        arguments["value"],
        mask,
        _no_dropout(walker, arguments["dropout_p"]),
        arguments["is_causal"],
        arguments["scale"],
        arguments.get("enable_gqa", Value(False)),
    )
    return _only(result, 9)


def _no_dropout(walker: "Walker", probability: Item) -> float:
    if probability.value:
        walker.recorder.note("attention had dropout in the file; it is served without")
    return 0.0


@_register("scaled_dot_product_attention")
def _plain_attention(walker: "Walker", arguments: Arguments) -> Item:
    if not arguments["dropout_p"].value:
        return NotImplemented
    kept = {**arguments, "dropout_p": Value(_no_dropout(walker, arguments["dropout_p"]))}
    return walker.operators.run(
        _aten.scaled_dot_product_attention.default._schema, [*kept.values()]
    )


def _register_max_pool(axes: int) -> None:
    pool: Any = getattr(_aten, f"max_pool{axes}d").default
    both: Any = getattr(_aten, f"max_pool{axes}d_with_indices").default

    def composite(walker: "Walker", arguments: Arguments) -> Item:
        values = walker.call(pool, *arguments.values())
        positions = walker.operators.run(both._schema, [*arguments.values()])[1]
        return values, positions  # positions nobody reads are removed as dead code

    COMPOSITES[f"aten::max_pool{axes}d_with_indices"] = composite


for _axes in (2, 3):
    _register_max_pool(_axes)
