"""What each operator of a canonical graph does to relevance, by name."""

from enum import Enum, auto
from typing import Any

from torch import fx, nn

from ..execution.draft import Draft, function_name
from ..packing import Unpack


class Role(Enum):
    """How relevance comes back through a node."""

    MOVE = auto()  # to where each value was taken from
    PASS = auto()  # element by element, unchanged
    SHARE = auto()  # in proportion to what each value contributes to a sum, or to a norm
    PRODUCT = auto()  # linear in each of several inputs
    DIVIDE = auto()
    SUBTRACT = auto()
    SOFTMAX = auto()
    NORM = auto()  # by statistics of the values themselves
    GATE = auto()  # one half of the values gates the other
    RECURRENT = auto()
    NONE = auto()  # to nowhere: it reads sizes alone
    UNPACK = auto()  # several inputs out of one row
    WEIGHTED = auto()  # by a rule for layers with weights


_WEIGHTED = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_MODULES: dict[type[nn.Module], Role] = {
    **dict.fromkeys(_WEIGHTED, Role.WEIGHTED),
    **dict.fromkeys((nn.LayerNorm, nn.GroupNorm), Role.NORM),
    **dict.fromkeys((nn.Softmax, nn.Softmax2d), Role.SOFTMAX),
    nn.GLU: Role.GATE,
    Unpack: Role.UNPACK,
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), Role.SHARE),
    **dict.fromkeys(
        (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Fold,
        nn.LPPool1d, nn.LPPool2d, nn.LPPool3d), Role.SHARE
    ),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), Role.MOVE),
    **dict.fromkeys(
        (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), Role.MOVE
    ),
    **dict.fromkeys(
        (
            nn.Identity, nn.Flatten, nn.Unflatten, nn.Unfold, nn.PixelShuffle, nn.PixelUnshuffle,
            nn.ChannelShuffle, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
            nn.AlphaDropout, nn.FeatureAlphaDropout,
            nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad1d, nn.ZeroPad2d,
            nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d,
            nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
            nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
        ),
        Role.MOVE,
    ),
    **dict.fromkeys(
        (
            nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU,
            nn.SiLU, nn.Mish, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink,
            nn.Softshrink, nn.Tanhshrink, nn.Softplus, nn.Softsign, nn.Sigmoid, nn.LogSigmoid,
            nn.Tanh, nn.Threshold, nn.LogSoftmax, nn.LocalResponseNorm, nn.RMSNorm,
        ),
        Role.PASS,
    ),
}  # fmt: skip


_FUNCTIONS: dict[str, Role] = {
    name: role
    for role, names in {
        Role.MOVE: """
            adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d alias alike_heads amax
            amin as_list as_strided as_type at broadcast_tensors broadcast_to by_direction cat
            channel_shuffle chunk clone columns compressed concat concatenate constant_pad_nd
            contiguous convert convert_like cummax cummin depth_to_space detach diagonal double
            dropout enter expand expand_as expand_to flatten flatten_at flip float frames gather
            getitem hsplit hstack identity im2col index index_put index_select item_at
            largest_everywhere leave masked_again masked_fill masked_scatter masked_select max
            max_pool1d max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices
            max_with_indices maximum maximum_over median merge_heads min minimum minimum_over
            moveaxis movedim narrow pack_padded_sequence pad pad_window pad_with permute _pick
            pick pixel_shuffle pixel_unshuffle place_elements place_slices ravel reflection_pad1d
            reflection_pad2d repeat repeat_interleave replication_pad1d replication_pad2d reshape
            reshape_as reshape_with_zeros reverse_axes reverse_sequence roll rot90 scatter select
            select_scatter slice slice_along slice_import slice_scatter sort space_to_depth split
            split_by split_evenly split_every split_heads split_with_sizes squeeze squeeze_at
            stack swapaxes swapdims t take take_along_dim take_elements take_slices tensor_split
            tile tile_by to top topk transpose transposed triangle tril trim triu type_as unbind
            unflatten unfold unmasked unsafe_chunk unsafe_split unsqueeze unsqueeze_at
            upsample_nearest1d upsample_nearest2d upsample_nearest3d view view_as vsplit vstack
            where
        """,
        Role.PASS: """
            abs acos acosh arctan asin asinh atan atanh batch_norm ceil celu channel_slope clamp
            clamp_max clamp_min clip clip_to cos cosh dequantise elu erf exp exp2 expm1
            fake_quantize_per_channel_affine fake_quantize_per_tensor_affine floor gelu hardshrink
            hardsigmoid hardswish hardtanh leaky_relu linear_sigmoid local_response_norm log log10
            log1p log2 log_sigmoid _log_softmax log_softmax logsigmoid mish
            _native_batch_norm_legit_no_training neg negative normalise normalise_length
            normalise_response normalise_scale normalise_with parametric pow power prelu quantise
            reciprocal relu relu6 rms_norm round round_straight_through rrelu rsqrt scale scaled
            selu shrunk sigmoid sign silu sin sinh softplus softshrink softsign sqrt square
            swish_with tan tanh tanhshrink threshold trunc
        """,
        Role.SHARE: """
            absolute_sum_over adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d add
            add_causal_mask add_channels add_mask avg_pool1d avg_pool2d avg_pool3d col2im cumsum
            fold grid_sample grid_sampler grid_sampler_2d index_add interpolate linalg_vector_norm
            masked_scores mean mean_everywhere mean_over nanmean nansum norm norm_everywhere
            norm_over resize rotated sample scatter_add spectrum std sum sum_over sum_windows
            upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_trilinear3d
            windowed_mean windowed_norm
        """,
        Role.PRODUCT: """
            addbmm addmm baddbmm bmm contract conv1d conv2d conv3d conv_transpose1d
            conv_transpose2d conv_transpose3d convolution dot einsum general_product
            inner_products linear matmul mm mul multiply mv outer scaled_scores tensordot
        """,
        Role.DIVIDE: "div divide true_divide truediv",
        Role.SUBTRACT: "sub subtract rsub",
        Role.SOFTMAX: "softmax _softmax _safe_softmax",
        Role.NORM: "layer_norm normalise_layer group_norm normalise_groups normalise_instances",
        Role.GATE: "glu",
        Role.RECURRENT: "recurrent",
        Role.NONE: """
            empty_like filled full_like identity_like initial_state key_mask new_empty new_full
            new_ones new_zeros number_to_tensor numbers_to_tensor one_hot ones_like rand_like
            randn_like running shape_tensor zero_state zeros_like
        """,
    }.items()
    for name in names.split()
}
CONVOLUTIONS = _WEIGHTED[1:]
_ACTIVATIONS = frozenset({"Clamp", "ScaledElu"})  # of the importers, which are slow to import
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_STATISTICS = (*_BATCH_NORMS, *_INSTANCE_NORMS)
_STRONG_GATES = frozenset({"sigmoid", "hardsigmoid", "softmax", "linear_sigmoid", "_softmax"})
_WEAK_GATES = frozenset({"clamp", "clip_to", "erf", "hardtanh", "relu6", "tanh"})


def name_of(draft: Draft, node: fx.Node) -> str:
    """The lowercase name of the operator that a node calls."""
    module = draft.module(node)
    return type(module).__name__.lower() if module is not None else function_name(node).rstrip("_")


def gating(draft: Draft, node: fx.Node) -> int:
    """How much a node is a gate: 2 for a sigmoid or softmax, 1 for another bounded function."""
    while True:
        name = name_of(draft, node)
        if name in _STRONG_GATES or name in _WEAK_GATES:
            return 2 if name in _STRONG_GATES else 1
        sources = [item for item in node.all_input_nodes if item.op not in ("get_attr", "output")]
        role = role_of(draft, node)
        scaled = name in ("add", "mul", "div", "divide", "truediv", "sub") and len(sources) == 1
        if not sources or not (role is Role.MOVE or scaled):
            return 0
        node = sources[0]


def role_of(draft: Draft, node: fx.Node) -> Role | None:
    """How relevance comes back through a node; None where that is not defined."""
    if node.op == "call_module":
        return _role_of_module(draft.module(node))
    name = function_name(node)
    return _FUNCTIONS.get(name) or _FUNCTIONS.get(name.rstrip("_"))


def _role_of_module(module: Any) -> Role | None:
    kind = type(module)
    if isinstance(module, nn.RNNBase):
        return Role.RECURRENT
    if kind in _STATISTICS:
        stored = not module.training and module.running_mean is not None
        return Role.PASS if stored else Role.NORM if kind in _INSTANCE_NORMS else None
    if kind in (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d):
        return Role.MOVE if module.mode.startswith("nearest") else Role.SHARE
    return Role.PASS if kind.__name__ in _ACTIVATIONS else _MODULES.get(kind)
