"""Two-dimensional convolutions in the channels-last layout, on the CPU.

oneDNN works on blocks of channels, so every convolution of contiguous tensors reorders its input
and its output; a chain of channels-last layers does not. Values keep their logical shape
`(N, C, H, W)`. Only what is known to work on any strides sees the layout.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from .draft import Draft, function_name
from .folding import with_weights

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_MODULES = frozenset((
    nn.Linear, nn.BatchNorm2d, nn.LayerNorm,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.PReLU,
))  # fmt: skip
_FUNCTIONS = frozenset((
    "add", "sub", "mul", "div", "truediv", "minimum", "maximum", "clamp", "sigmoid", "tanh", "relu",
    "relu_", "hardtanh_", "cat", "concat", "mean", "sum", "amax", "max_pool2d", "permute",
))  # fmt: skip


def enter(x: Tensor) -> Tensor:
    """`x` in the channels-last layout; its gradient is contiguous."""
    y = x.contiguous(memory_format=torch.channels_last)
    if y is not x and y.requires_grad:
        y.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
    return y


def leave(x: Tensor) -> Tensor:
    """`x`, contiguous; its gradient is too."""
    y = x.contiguous()
    if y.requires_grad:
        y.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
    return y


def is_depthwise(convolution: Any) -> bool:
    """Whether every channel of a convolution's input is convolved by itself."""
    return bool(convolution.groups == convolution.in_channels > 1)


def channels_last(draft: Draft) -> None:
    """Let the two-dimensional convolutions of a graph work in the channels-last layout."""
    strided: set[fx.Node] = set()  # nodes whose tensors may not be contiguous
    moved: dict[tuple[Any, fx.Node], fx.Node] = {}

    def converted(function: Callable[[Tensor], Tensor], source: fx.Node) -> fx.Node:
        if (function, source) not in moved:
            with draft.graph.inserting_after(source):
                moved[function, source] = draft.graph.call_function(function, (source,))
        return moved[function, source]

    for node in list(draft.graph.nodes):
        sources = node.all_input_nodes
        if type(draft.module(node)) in _CONVOLUTIONS and len(sources) == 1:
            (source,) = sources
            if source not in strided:
                node.replace_input_with(source, converted(enter, source))
            _convert(draft, node)
            strided.add(node)
        elif strided.isdisjoint(sources) or draft.gives_number(node):
            continue
        elif node.op == "output":
            for source in strided.intersection(sources):
                _show(draft, source)
        elif _takes_any_strides(draft, node):
            strided.add(node)
        else:
            for source in strided.intersection(sources):
                node.replace_input_with(source, converted(Tensor.contiguous, source))


def _convert(draft: Draft, node: fx.Node) -> None:
    module: Any = draft.module(node)
    if module not in draft.derived.values():  # a folded layer was laid out when it was made

        def laid_out() -> nn.Module:
            weight = module.weight.detach().clone(memory_format=torch.channels_last)
            return with_weights(module, weight=weight)

        draft.copied.append(module)
        draft.put(node, (node.name,), laid_out)


def _takes_any_strides(draft: Draft, node: fx.Node) -> bool:
    module = draft.module(node)
    known = type(module) in _MODULES or function_name(node) in _FUNCTIONS
    return known and draft.shape(node) is not None


def _show(draft: Draft, node: fx.Node) -> None:
    """Let everybody read a node's value contiguous."""
    with draft.graph.inserting_after(node):
        shown = draft.graph.call_function(leave, (node,))
    node.replace_all_uses_with(shown, lambda user: user is not shown)
