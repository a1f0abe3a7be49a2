"""Which functions a program may call. A name in a file is otherwise looked up in all of torch."""

import re
from importlib import import_module
from typing import Any

import torch

from ...errors import ModelRejected
from .expressions import words

_OVERLOAD = re.compile(r"torch\.ops\.(aten|quantized_decomposed)\.(\w{1,80})\.(\w{1,80})", re.ASCII)
_OPERATOR = re.compile(r"_operator\.(\w+)", re.ASCII)
_HIGHER_ORDER = re.compile(r"torch\.ops\.higher_order\.(\w+)", re.ASCII)
_PYTHON = words(
    "_operator.eq _operator.ne _operator.le _operator.ge _operator.lt _operator.gt "
    "_operator.neg _operator.pos _operator.mul _operator.add _operator.sub _operator.floordiv "
    "_operator.mod _operator.truediv _operator.and_ _operator.or_ _operator.getitem "
    "_operator.pow math.trunc math.ceil math.floor torch.sym_not torch.sym_int "
    "torch.sym_float torch.sym_max torch.sym_min torch.sym_ite torch.sym_sqrt torch._sym_sqrt"
)
_REGIONS = words(
    "wrap_with_set_grad_enabled wrap_with_autocast cond map_impl scan while_loop associative_scan"
)
# Operators of the dispatcher that reach outside the program, or behind a tensor's own memory.
_REFUSED = re.compile(
    r"from_file|set|set_|set_data|data|resize.*|record_stream|pin_memory|is_pinned|.*backward|"
    r"sparse_.*|to_sparse.*|.*mkldnn.*|cudnn_.*|miopen_.*|fbgemm_.*|manual_seed|retain_grad|"
    r"requires_grad_|_test_.*|save|quantize_per_.*|quantized_.*|values|indices|ccol_indices|"
    r"crow_indices|segment_reduce|col_indices|row_indices|coalesce|.*jagged.*|.*nested.*|q_.*"
)
_PRIVATE = words(
    "_adaptive_avg_pool2d _adaptive_avg_pool3d _add_relu _addmm_activation _aminmax "
    "_assert_async _assert_scalar _assert_tensor_metadata _batch_norm_no_update "
    "_batch_norm_with_update _batch_norm_with_update_functional _cdist_forward _conj "
    "_conj_physical _convolution _convolution_mode _embedding_bag _embedding_bag_forward_only "
    "_euclidean_dist _fft_c2c _fft_c2r _fft_r2c _functional_assert_async "
    "_functional_assert_scalar _functional_sym_constrain_range "
    "_functional_sym_constrain_range_for_size _fused_rms_norm _linalg_det _local_scalar_dense "
    "_log_softmax _masked_softmax _native_batch_norm_legit "
    "_native_batch_norm_legit_functional _native_batch_norm_legit_no_training "
    "_native_multi_head_attention _pad_circular _pad_enum _pdist_forward _prelu_kernel "
    "_reshape_copy _safe_softmax _scaled_dot_product_attention_math "
    "_scaled_dot_product_cudnn_attention _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_fused_attention_overrideable _shape_as_tensor _softmax _stack "
    "_thnn_fused_gru_cell _thnn_fused_lstm_cell _to_copy _transform_bias_rescale_qkv "
    "_transformer_encoder_layer_fwd _trilinear _unique2 _unsafe_index _unsafe_masked_index "
    "_unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm _weight_norm_interface "
    "_pack_padded_sequence _pad_packed_sequence"
)


def target(name: str) -> str:
    """The name of a function that a program may call, as it is.

    Raises:
        ModelRejected: it is another function.
    """
    if name in _PYTHON:
        return name
    region = _HIGHER_ORDER.fullmatch(name)
    if region and region[1] in _REGIONS:
        import_module("torch._higher_order_ops")  # registers them
        if hasattr(torch.ops.higher_order, region[1]):
            return name
    overload = _OVERLOAD.fullmatch(name)
    if overload and _is_overload(*overload.groups()):
        return name
    raise ModelRejected(f"the file calls {name[:80]!r}, which is not served")


def _is_overload(namespace: str, name: str, overload: str) -> bool:
    if namespace == "aten":
        private = name.startswith("_")
        if (private and name not in _PRIVATE) or _REFUSED.fullmatch(name):
            return False
        if overload.endswith("out"):  # writes to its arguments
            return False
    else:
        import_module("torch.ao.quantization.fx._decomposed")
    full = f"{namespace}::{name}"
    if not _is_dispatched(full, overload):
        return False
    packet: Any = getattr(getattr(torch.ops, namespace), name, None)
    return packet is not None and overload in packet.overloads()


def _is_dispatched(name: str, overload: str) -> bool:
    """Whether an operator is one of the dispatcher's, not of TorchScript's own ones."""
    suffix = "" if overload == "default" else f".{overload}"
    return bool(torch._C._dispatch_has_kernel(f"{name}{suffix}"))
