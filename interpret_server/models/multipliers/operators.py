"""What kind of function an ATen operator is, as far as multipliers are concerned."""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

import torch

_aten = torch.ops.aten


class Kind(Enum):
    """How an operator's multipliers are found."""

    LINEAR = auto()  # of all its floating-point arguments together: the same everywhere
    PRODUCT = auto()  # linear in each of two arguments: the gradient half way is exact
    POINTWISE = auto()  # value by value: secants
    PIECEWISE = auto()  # value by value, of straight pieces: secants that need no more digits
    LARGEST = auto()  # picks the largest of several values
    SOFTMAX = auto()
    LOG_SOFTMAX = auto()
    LOG_SUM_EXP = auto()
    ALONG = (
        auto()
    )  # of the values along one axis each: as OTHER, and what that misses is shared out
    OTHER = auto()  # the mean of gradients on the way


def _packets(text: str) -> frozenset[Any]:
    return frozenset(getattr(_aten, name) for name in text.split() if hasattr(_aten, name))


_KINDS: dict[Kind, frozenset[Any]] = {
    Kind.LINEAR: _packets(
        "add sub rsub neg sum mean cumsum cat stack clone _to_copy unsafe_split "
        "unsafe_split_with_sizes unsafe_chunk _unsafe_view _reshape_alias contiguous lift_fresh "
        "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
        "replication_pad2d replication_pad3d avg_pool1d avg_pool2d avg_pool3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d upsample_nearest1d "
        "upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
        "upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_bilinear2d_aa pixel_shuffle pixel_unshuffle "
        "channel_shuffle native_channel_shuffle native_batch_norm cudnn_batch_norm "
        "_native_batch_norm_legit_no_training gather index index_select _unsafe_index index_add "
        "index_copy index_put scatter_add slice_scatter select_scatter "
        "diagonal_scatter as_strided_scatter embedding flip roll repeat repeat_interleave "
        "tril triu im2col col2im max_unpool2d max_unpool3d trace diag_embed "
        "_fft_r2c _fft_c2r _fft_c2c view_as_real view_as_complex _conj_physical "
        "take take_along_dim "
        "_pack_padded_sequence _pad_packed_sequence rot90 masked_select squeeze_copy expand_copy "
        "permute_copy view_copy"
    ),
    Kind.PRODUCT: _packets("mul mm addmm bmm baddbmm addbmm mv addmv dot vdot convolution matmul"),
    Kind.PIECEWISE: _packets(
        "relu hardtanh leaky_relu threshold abs clamp clamp_min clamp_max hardsigmoid "
        "_prelu_kernel softshrink hardshrink round floor ceil trunc sign"
    ),
    Kind.POINTWISE: _packets(
        "hardswish log_sigmoid_forward masked_fill fake_quantize_per_tensor_affine rrelu "
        "_fake_quantize_learnable_per_tensor_affine "
        "fake_quantize_per_tensor_affine_cachemask div pow where maximum minimum"
    ),
    Kind.LARGEST: _packets(
        "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d "
        "amax amin max min"
    ),
    Kind.SOFTMAX: _packets("_softmax _safe_softmax"),
    Kind.LOG_SOFTMAX: _packets("_log_softmax"),
    Kind.LOG_SUM_EXP: _packets("logsumexp"),
    Kind.ALONG: _packets("sort topk cummax cummin cumprod logcumsumexp"),
}
_BY_PACKET = {packet: kind for kind, packets in _KINDS.items() for packet in packets}


INDEXED = _packets(  # pick values by whole numbers, which have no multipliers themselves
    "gather index index_select _unsafe_index index_add index_copy index_put scatter scatter_add "
    "scatter_reduce embedding take take_along_dim masked_select max_unpool2d max_unpool3d"
)
_GIVEN_BY = {  # linear where this argument does not depend on the input
    _aten.where: 0,
    _aten.masked_fill: 1,
    _aten.masked_scatter: 1,
    _aten.div: 1,
}
_WITHOUT_SETTINGS = ("self", "Scalar", "Tensor", "default")


def varies(dtype: torch.dtype) -> bool:
    """Whether values of a type pass derivatives."""
    return dtype.is_floating_point or dtype.is_complex


def kind_of(
    operator: Any,
    taken: Sequence[torch.dtype],
    given: Sequence[torch.dtype],
    uses: Sequence[int],
) -> Kind:
    """The kind of a call of an operator.

    Args:
        operator: an overload.
        taken: types of the values that it takes and that depend on the input.
        given: types of its results.
        uses: how many such values each positional argument holds.
    """
    kind = _kind(operator, all(map(varies, (*taken, *given))), uses)
    if kind is Kind.PRODUCT and sum(uses) < 2:
        return Kind.LINEAR
    secants = kind in (Kind.POINTWISE, Kind.PIECEWISE)
    return Kind.OTHER if secants and any(dtype.is_complex for dtype in taken) else kind


def _kind(operator: Any, continuous: bool, uses: Sequence[int]) -> Kind:
    packet, overload = operator.overloadpacket, operator._overloadname
    condition = _GIVEN_BY.get(packet)
    if condition is not None and not uses[condition] and overload in _WITHOUT_SETTINGS:
        return Kind.LINEAR
    if packet is _aten._to_copy and not continuous:
        return Kind.PIECEWISE
    if packet in (_aten.max, _aten.min) and overload == "other":
        return Kind.POINTWISE
    if packet is _aten.scatter and overload in ("src", "value"):
        return Kind.LINEAR
    kind = _BY_PACKET.get(packet)
    if kind is not None:
        return kind
    if operator.is_view:
        return Kind.LINEAR
    return Kind.POINTWISE if torch.Tag.pointwise in operator.tags else Kind.OTHER
