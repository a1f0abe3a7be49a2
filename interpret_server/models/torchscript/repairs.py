"""Makes an archive run here as it is meant to: on this machine, in evaluation mode, safely.

An export may have fixed the device and the training flag of the machine it was made on, and
recurrent operators read beyond a hidden state that is too small. An archive's code is edited for
these before it first runs; what it computes in evaluation mode stays the same.
"""

from collections.abc import Iterator
from typing import Any

import torch

from .recurrent import GATES

_CALL = "interpret::CallMethod"
_FLAGS = frozenset({"train", "training"})
_QUANTISED = ("quantized::", "aten::quantize_per", "aten::dequantize")


def inline_functions(graph: Any, *, keep: str = "prim::CallMethod") -> None:
    """Inline calls of functions, leaving calls of submodules' methods as nodes of kind `keep`."""
    for node in list(_nodes(graph, "prim::CallMethod")):
        inputs = list(node.inputs())
        if inputs[0].node().kind() != "prim::CreateObject":
            _rename(graph, node, _CALL)
    torch._C._jit_pass_inline(graph)
    if keep != _CALL:
        for node in list(_nodes(graph, _CALL)):
            _rename(graph, node, keep)


def repair(archive: torch.jit.ScriptModule) -> tuple[str, ...]:
    """Edit an archive that has not run yet.

    Returns:
        What was in training mode: `path` of a module or `path: operator`, in order.
    """
    training: dict[str, None] = {}
    types: dict[str, tuple[list[str], bool]] = {}  # modules of one type share their code
    for path, module in archive.named_modules():
        name = module._c._type().qualified_name()
        if name not in types:
            graphs = list(_graphs(module))
            flags = [flag for graph in graphs for flag in _repaired(graph)]
            types[name] = flags, any(_reads_training(graph) for graph in graphs)
        flags, reads = types[name]
        training.update(dict.fromkeys(f"{path}: {flag}".lstrip(": ") for flag in flags))
        if getattr(module, "training", False) and reads:
            training.setdefault(path or "the model")
    return tuple(training)


def _repaired(graph: Any) -> list[str]:
    """Edit one graph; the operators that were in training mode."""
    inline_functions(graph)
    _move(graph)
    _check_states(graph)
    return list(_clear_flags(graph))


def is_quantised(archive: torch.jit.ScriptModule) -> bool:
    """Whether an archive computes with quantised tensors, which carry no gradient."""
    return any(
        node.kind().startswith(_QUANTISED)
        for module in archive.modules()
        for graph in _graphs(module)
        for node in _nodes(graph)
    )


def _graphs(module: Any) -> Iterator[Any]:
    for name in module._c._method_names():
        yield module._c._get_method(name).graph


def _nodes(block: Any, kind: str | None = None) -> Iterator[Any]:
    for node in block.nodes():
        if kind is None or node.kind() == kind:
            yield node
        for inner in node.blocks():
            yield from _nodes(inner, kind)


def _rename(graph: Any, node: Any, kind: str) -> None:
    renamed = graph.create(kind, list(node.inputs()), node.outputsSize())
    renamed.s_("name", node.s("name"))
    renamed.insertBefore(node)
    for ours, theirs in zip(renamed.outputs(), node.outputs(), strict=True):
        ours.setType(theirs.type())
    node.replaceAllUsesWith(renamed)
    node.destroy()


# Devices


def _move(graph: Any) -> None:
    """Replace accelerators by the device of the first tensor given, or by the CPU."""
    tensors = (value for value in graph.inputs() if value.type().kind() == "TensorType")
    given = next(tensors, None)
    for node in list(_nodes(graph)):
        kind = node.kind()
        if kind == "prim::Constant" and str(node.output().type()) == "Device":
            if node.output().toIValue().type != "cpu":
                _place(graph, node, given)
        elif kind == "aten::device":
            _place(graph, node, given)
        elif kind == "aten::cuda":
            moved = graph.create("aten::cpu", list(node.inputs()), 1)
            moved.insertBefore(node)
            moved.output().setType(node.output().type())
            node.replaceAllUsesWith(moved)
            node.destroy()


def _place(graph: Any, node: Any, given: Any) -> None:
    with graph.insert_point_guard(node):
        if given is None:
            device = graph.insertConstant(torch.device("cpu"))
        else:
            asked = graph.create("prim::device", [given], 1)
            asked.insertBefore(node)
            asked.output().setType(node.output().type())
            device = asked.output()
    node.output().replaceAllUsesWith(device)


# Training


def _clear_flags(graph: Any) -> Iterator[str]:
    for node in list(_nodes(graph)):
        if not node.kind().startswith("aten::"):
            continue
        schema = node.schema()
        if "bool train" not in schema:
            continue
        names = [argument.name for argument in torch._C.parse_schema(schema).arguments]
        inputs = list(node.inputs())
        if "running_mean" in names and inputs[names.index("running_mean")].node().mustBeNone():
            continue  # it has no statistics to normalise by
        if "p" in names and not _constant(inputs[names.index("p")]):
            continue  # nothing is dropped, or the code itself sees to that
        for position, name in enumerate(names):
            if name in _FLAGS and _constant(inputs[position]) is True:
                with graph.insert_point_guard(node):
                    node.replaceInput(position, graph.insertConstant(False))
                yield node.kind()


def _reads_training(graph: Any) -> bool:
    return any(node.s("name") == "training" for node in _nodes(graph, "prim::GetAttr"))


def _constant(value: Any) -> Any:
    node = value.node()
    if node.kind() != "prim::Constant" or node.mustBeNone():
        return None
    return value.toIValue()


# Hidden states


def _check_states(graph: Any) -> None:
    for operator, gates in GATES.items():
        for node in list(_nodes(graph, f"aten::{operator}")):
            _check_state(graph, node, operator, gates)


def _check_state(graph: Any, node: Any, operator: str, gates: int) -> None:
    """Reshape hidden states to what they must be, which fails where they are anything else."""
    names = [argument.name for argument in torch._C.parse_schema(node.schema()).arguments]
    given = dict(zip(names, node.inputs(), strict=True))
    layers, both = _constant(given["num_layers"]), _constant(given["bidirectional"])
    first = _constant(given["batch_first"]) if "batch_first" in given else False
    if None in (layers, both, first):
        return
    states = [given["hx"]]
    if operator == "lstm":
        if given["hx"].node().kind() != "prim::ListConstruct":
            return
        states = list(given["hx"].node().inputs())
    integer, tensor = torch._C.IntType.get(), torch._C.TensorType.get()

    def made(kind: str, inputs: list[Any], type_: Any) -> Any:
        new = graph.create(kind, inputs, 1)
        new.insertBefore(node)
        new.output().setType(type_)
        return new.output()

    def number(value: int) -> Any:
        return graph.insertConstant(value)

    with graph.insert_point_guard(node):
        if "batch_sizes" in given:
            rows = made("aten::select", [given["batch_sizes"], number(0), number(0)], tensor)
            rows = made("aten::Int", [rows], integer)
        else:
            rows = made("aten::size", [given["input"], number(0 if first else 1)], integer)
        weight = made("aten::__getitem__", [given["params"], number(1)], tensor)
        size = made("aten::size", [weight, number(0)], integer)
        size = made("aten::floordiv", [size, number(gates)], integer)
        projected = made("aten::size", [weight, number(1)], integer)
        count = number(layers * (2 if both else 1))
        fitting = []
        for state, width in zip(states, (projected, size), strict=False):
            shape = made("prim::ListConstruct", [count, rows, width], torch._C.ListType(integer))
            fitting.append(made("aten::reshape", [state, shape], tensor))
        if operator == "lstm":
            fitting = [made("prim::ListConstruct", fitting, torch._C.ListType(tensor))]
        node.replaceInput(names.index("hx"), fitting[0])
