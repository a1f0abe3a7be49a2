"""Rewrites that change no bit: what computes nothing goes, what may work in place does."""

from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from . import pooling
from .draft import Draft, function_name

# Modules that make a new tensor which their backward pass does not need.
_FRESH = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def drop_identities(draft: Draft) -> None:
    """Take out dropout in its inference form and identities."""
    for node in list(draft.graph.nodes):
        module = draft.module(node)
        resting = type(module) in _DROPOUTS and module is not None and not module.training
        if resting or type(module) is nn.Identity:
            draft.bypass(node, *node.all_input_nodes)


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
