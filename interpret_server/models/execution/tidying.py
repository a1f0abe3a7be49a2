"""Rewrites that change no bit: what computes nothing goes, what may work in place does."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from . import pooling
from .draft import Draft, function_name

# Modules that make a new tensor which their backward pass does not need.
_FRESH = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.MaxPool2d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


_aten = torch.ops.aten
# The same kernels through torch's own bindings, which take half the time to call.
_BOUND: dict[Any, Callable[..., Any]] = {
    _aten.add.Tensor: torch.add,
    _aten.add.Scalar: torch.add,
    _aten.sub.Tensor: torch.sub,
    _aten.sub.Scalar: torch.sub,
    _aten.mul.Tensor: torch.mul,
    _aten.mul.Scalar: torch.mul,
    _aten.div.Tensor: torch.div,
    _aten.div.Scalar: torch.div,
    _aten.matmul.default: torch.matmul,
    _aten.bmm.default: torch.bmm,
    _aten.permute.default: torch.permute,
    _aten.transpose.int: torch.transpose,
    _aten.t.default: torch.t,
    _aten.reshape.default: torch.reshape,
    _aten.view.default: Tensor.view,
    _aten.flatten.using_ints: torch.flatten,
    _aten.unsqueeze.default: torch.unsqueeze,
    _aten.squeeze.dim: torch.squeeze,
    _aten.select.int: torch.select,
    _aten.cat.default: torch.cat,
    _aten.unbind.int: torch.unbind,
    _aten.expand.default: Tensor.expand,
    _aten.stack.default: torch.stack,
    _aten.mean.dim: torch.mean,
    _aten.sum.dim_IntList: torch.sum,
    _aten.tanh.default: torch.tanh,
    _aten.sigmoid.default: torch.sigmoid,
    _aten.exp.default: torch.exp,
    _aten.sqrt.default: torch.sqrt,
    _aten.rsqrt.default: torch.rsqrt,
    _aten.neg.default: torch.neg,
    _aten.abs.default: torch.abs,
    _aten.reciprocal.default: torch.reciprocal,
    _aten.sym_size.int: Tensor.size,
    _aten.scaled_dot_product_attention.default: F.scaled_dot_product_attention,
}


def call_directly(draft: Draft) -> None:
    """Call common operators by torch's bindings rather than by the dispatcher's Python side."""
    for node in draft.graph.nodes:
        if node.op == "call_function" and node.target in _BOUND:
            node.target = _BOUND[node.target]
            if node.target in (torch.add, torch.sub) and len(node.args) > 2:
                *operands, alpha = node.args  # which these take by name
                node.args, node.kwargs = tuple(operands), {"alpha": alpha}


def drop_identities(draft: Draft) -> None:
    """Take out dropout in its inference form and identities."""
    for node in list(draft.graph.nodes):
        module = draft.module(node)
        resting = type(module) in _DROPOUTS and module is not None and not module.training
        if resting or type(module) is nn.Identity:
            draft.bypass(node, *node.all_input_nodes)


def rectify_after_pooling(draft: Draft) -> None:
    """Rectify the largest values of windows rather than all: fewer, and the same ones.

    The gradient is the same too, but not under another rule for rectifiers, which may let it pass
    where all of a window is below zero.
    """
    for node in list(draft.graph.nodes):
        pool: Any = draft.module(node)
        if type(pool) is not nn.MaxPool2d or pool.return_indices:
            continue
        (source,) = node.all_input_nodes
        if type(draft.module(source)) is not nn.ReLU or len(source.users) > 1:
            continue
        with draft.graph.inserting_before(node):
            pooled = draft.graph.call_module(str(node.target), source.args)
            rectified = draft.graph.call_module(str(source.target), (pooled,))
        if node in draft.observed:
            draft.observed[pooled] = draft.observed[node]
        _replace(draft, node, rectified)
        draft.graph.erase_node(source)


def work_in_place(draft: Draft) -> None:
    """Rectify in place where the input is new, nobody else reads it and nothing saved it."""
    for node in list(draft.graph.nodes):
        module: Any = draft.module(node)
        if type(module) not in (nn.ReLU, nn.ReLU6):
            continue
        (source,) = node.all_input_nodes
        if len(source.users) > 1 or not _is_fresh(draft, source):
            continue
        with draft.graph.inserting_before(node):
            if type(module) is nn.ReLU:
                replacement = draft.graph.call_function(F.relu_, (source,))
            else:
                replacement = draft.graph.call_function(F.hardtanh_, (source, 0.0, 6.0))
        _replace(draft, node, replacement)


def pool_vectorised(draft: Draft) -> None:
    """Pool by the faster scan."""
    for node in list(draft.graph.nodes):
        module: Any = draft.module(node)
        if type(module) is nn.MaxPool2d and not module.return_indices:
            with draft.graph.inserting_before(node):
                arguments = (*node.all_input_nodes, *pooling.settings(module))
                replacement = draft.graph.call_function(pooling.max_pool2d, arguments)
            _replace(draft, node, replacement)


def pool_by_halves(draft: Draft) -> None:
    """Pool windows of 2 x 2 in a channels-last graph by the faster comparison."""
    for node in list(draft.graph.nodes):
        module = draft.module(node)
        if type(module) is nn.MaxPool2d and not module.return_indices and pooling.halves(module):
            with draft.graph.inserting_before(node):
                replacement = draft.graph.call_function(pooling.halve, node.args)
            _replace(draft, node, replacement)


def _replace(draft: Draft, node: fx.Node, replacement: fx.Node) -> None:
    replacement.meta = node.meta
    if node in draft.observed:
        draft.observed[replacement] = draft.observed[node]
    draft.bypass(node, replacement)


def _is_fresh(draft: Draft, node: fx.Node) -> bool:
    module = draft.module(node)
    if isinstance(module, nn.Linear):  # with more axes, its result is a view
        return len(draft.shape(node) or ()) == 2
    return isinstance(module, _FRESH) or function_name(node) == "add"
