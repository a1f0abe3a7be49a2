"""ONNX files that never end, grow without end, or break the standard."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx_bombs import COMPUTED, FOLDED
from onnx_chain import node, save

from .bait import Bait
from .kinds import HostileFile
from .onnx_graphs import ADD, FLOAT, array, model
from .onnx_messages import field, varint

INT64, BOOL = TensorProto.INT64, TensorProto.BOOL
_TRIPS = 2**62


def _doubling(depth: int) -> onnx.ModelProto:
    """Each function calls the one before twice."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)]
    body = [helper.make_node("Identity", ["a"], ["b"])]
    functions = [helper.make_function("evil", "F0", ["a"], ["b"], body, opsets)]
    for k in range(1, depth):
        body = [
            helper.make_node(f"F{k - 1}", ["a"], ["m"], domain="evil"),
            helper.make_node(f"F{k - 1}", ["m"], ["b"], domain="evil"),
        ]
        functions.append(helper.make_function("evil", f"F{k}", ["a"], ["b"], body, opsets))
    return model([helper.make_node(f"F{depth - 1}", ["h"], ["y"], domain="evil")], (), functions)


def _recursive() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)]
    body = [helper.make_node("F", ["a"], ["b"], domain="evil")]
    function = helper.make_function("evil", "F", ["a"], ["b"], body, opsets)
    return model([helper.make_node("F", ["h"], ["y"], domain="evil")], (), [function])


def _loop(
    trips: str,
    *,
    condition: str = "keep_in",
    scan: bool = False,
    before: Sequence[onnx.NodeProto] = (),
) -> onnx.ModelProto:
    """`y` is `h` carried through a loop of `trips` rounds while `condition` holds."""
    value = helper.make_tensor_value_info
    inputs = [value("i", INT64, []), value("keep_in", BOOL, []), value("v", FLOAT, ["n", 3])]
    nodes = [
        helper.make_node("Mul", ["v", "one"], ["v_out"]),
        helper.make_node("Identity", [condition], ["keep_out"]),
    ]
    outputs = [value("keep_out", BOOL, []), value("v_out", FLOAT, ["n", 3])]
    if scan:
        nodes.append(helper.make_node("Identity", ["v"], ["s"]))
        outputs.append(value("s", FLOAT, ["n", 3]))
    body = helper.make_graph(nodes, "body", inputs, outputs)
    given = [trips, "", "h"] if trips else ["", "yes", "h"]
    results = ["y", "all"] if scan else ["y"]
    stored = [
        array("trips", _TRIPS, np.int64),
        array("yes", True, np.bool_),
        array("one", 1.0),
        array("many", 4e18),
    ]
    return model([*before, helper.make_node("Loop", given, results, body=body)], stored)


_ROUNDS_OF_X = [  # as many rounds as the input says, times 4e18
    helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
    helper.make_node("Mul", ["m", "many"], ["f"]),
    helper.make_node("Cast", ["f"], ["rounds"], to=INT64),
]


def _cycle() -> onnx.ModelProto:
    return model(
        [
            helper.make_node("Add", ["h", "b"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Relu", ["b"], ["y"]),
        ]
    )


def _chain(length: int) -> bytes:
    """A graph of many nodes, written without the package, which takes long."""
    start = model([]).SerializeToString()
    name = [f"v{k}".encode() for k in range(length)]
    name[0], name[-1] = b"h", b"y"
    nodes = b"".join(
        field(1, field(1, name[k]) + field(2, name[k + 1]) + field(4, b"Relu"))
        for k in range(length - 1)
    )
    return start + field(7, nodes)  # a message that comes twice is merged


def _deep(depth: int) -> bytes:
    inner = field(1, b"h") + field(2, b"y") + field(4, b"Relu")
    for _ in range(depth):
        graph = field(1, inner) + field(2, b"g")
        branch = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        inner = field(1, b"c") + field(2, b"y") + field(4, b"If") + field(5, branch)
    return model([]).SerializeToString() + field(7, field(1, inner))


def _attribute(count: int) -> onnx.ModelProto:
    axes = helper.make_node("Constant", [], ["unused"], value_ints=[7] * count)
    return model([axes, helper.make_node("Relu", ["h"], ["y"])])


def _texts(text: str) -> onnx.ModelProto:
    built = model([helper.make_node("Relu", ["h"], ["y"], name=text, domain="")])
    built.producer_name = built.doc_string = built.graph.name = text
    built.graph.node[1].doc_string = text
    built.metadata_props.add(key="names", value=text)
    built.graph.output[0].name = built.graph.node[1].output[0] = text
    return built


def _labels(text: str) -> onnx.ModelProto:
    built = model([helper.make_node("Relu", ["h"], ["y"])])
    built.metadata_props.add(key="names", value=repr({k: f"{text}{k}" for k in range(3)}))
    return built


def _stored(dims: Sequence[int], data: bytes = bytes(12), kind: int = FLOAT) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=kind, raw_data=data)
    tensor.dims.extend(dims)
    return model(ADD, [tensor])


def _tree(**changes: Any) -> onnx.ModelProto:
    """A decision tree whose branches lead back to the root."""
    attributes: dict[str, Any] = {
        "n_targets": 3,
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [0, 0, 0],
        "nodes_values": [0.5, 0.5, 0.5],
        "nodes_modes": ["BRANCH_LEQ"] * 3,
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
        "target_treeids": [0],
        "target_nodeids": [0],
        "target_ids": [0],
        "target_weights": [1.0],
    } | changes
    return model([node("TreeEnsembleRegressor", "x", "y", domain="ai.onnx.ml", **attributes)])


def _strings(pattern: str, text: str) -> onnx.ModelProto:
    stored = [helper.make_tensor("text", TensorProto.STRING, [1], [text.encode()])]
    return model(
        [
            helper.make_node("RegexFullMatch", ["text"], ["found"], pattern=pattern),
            helper.make_node("Cast", ["found"], ["w"], to=FLOAT),
            *ADD,
        ],
        stored,
        opset=20,
    )


def _einsum() -> onnx.ModelProto:
    letters = "abcdefghijklmnopqrstuvwxyz"
    terms = [f"n{a}" for a in letters if a != "n"]
    return model([helper.make_node("Einsum", ["x"] * len(terms), ["y"], equation=",".join(terms))])


def _dice() -> onnx.ModelProto:
    return model([helper.make_node("RandomNormalLike", ["h"], ["w"]), *ADD])


def _training() -> onnx.ModelProto:
    built = model([helper.make_node("Relu", ["h"], ["y"])])
    built.training_info.add().algorithm.node.add(op_type="Evil", input=["x"], output=["z"])
    return built


def _unknown(operator: str, domain: str) -> onnx.ModelProto:
    return model([helper.make_node(operator, ["h"], ["y"], domain=domain)])


def _gather(index: int) -> onnx.ModelProto:
    stored = [array("at", [index] * 3, np.int64)]
    return model([helper.make_node("Gather", ["x", "at"], ["y"], axis=1)], stored)


def _quantised(zero_points: int) -> onnx.ModelProto:
    stored = [array("s", [0.1] * 9), array("z", [0] * zero_points, np.uint8)]
    return model(
        [
            helper.make_node("QuantizeLinear", ["h", "s", "z"], ["q"], axis=7),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=7),
        ],
        stored,
    )


# What computes for ever, or nearly, and what asks for much.
SLOW: dict[str, Callable[[], onnx.ModelProto | bytes]] = {
    "doubling-functions": lambda: _doubling(60),
    "doubling-functions-slightly": lambda: _doubling(18),
    "loop-of-many-trips": lambda: _loop("trips"),
    "loop-without-end": lambda: _loop("", condition="keep_in"),
    "loop-that-grows": lambda: _loop("trips", scan=True),
    "loop-as-the-input-says": lambda: _loop("rounds", before=_ROUNDS_OF_X),
    "many-nodes": lambda: _chain(1_000_000),
    "nearly-many-nodes": lambda: _chain(20_000),
    "tree-of-cycles": _tree,
    "long-attribute": lambda: _attribute(20_000_000),
    "einsum": _einsum,
    "regular-expression": lambda: _strings("(a+)+b" * 20, "a" * 4000),
}
PLAIN: dict[str, Callable[[], onnx.ModelProto | bytes]] = {
    "recursive-function": _recursive,
    "cycle": _cycle,
    "deep-branches": lambda: _deep(40),
    "very-deep-branches": lambda: _deep(3000),
    "control-characters": lambda: _texts("\x1b[2J\x07\x00\r\ny"),
    "long-names": lambda: _texts("y" * 1_000_000),
    "paths-as-names": lambda: _texts("../../etc/passwd"),
    "python-as-names": lambda: _texts("y'); import os; os.abort(); ('"),
    "control-characters-in-labels": lambda: _labels("\x1b[2J\n"),
    "long-labels": lambda: _labels("l" * 1_000_000),
    "huge-shape": lambda: _stored([2**40]),
    "overflowing-shape": lambda: _stored([2**62, 2**62]),
    "negative-shape": lambda: _stored([-3]),
    "unknown-type": lambda: _stored([3], kind=200),
    "texts-as-weights": lambda: _stored([3], b"", TensorProto.STRING),
    "tree-out-of-bounds": lambda: _tree(
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_featureids=[2**31, 0, 0],
        nodes_truenodeids=[1, 0, 0],
        target_nodeids=[2],
    ),
    "tree-with-absent-nodes": lambda: _tree(nodes_truenodeids=[77, 78, 79]),
    "dice": _dice,
    "training": _training,
    "unknown-operator": lambda: _unknown("Evil", ""),
    "unknown-domain": lambda: _unknown("Relu", "evil"),
    "python-operator": lambda: _unknown("PyOp", "com.microsoft"),
    "gather-beyond-its-end": lambda: _gather(2**40),
    "gather-before-its-start": lambda: _gather(-5),
    "quantised-on-a-far-axis": lambda: _quantised(3),
    "no-graph": lambda: b"\x08\x08",
    "nested-groups": lambda: b"\x3b" * 100_000,
    "length-beyond-its-end": lambda: model([]).SerializeToString() + b"\x3a" + varint(2**40),
    "endless-number": lambda: model([]).SerializeToString() + b"\x08" + b"\xff" * 5000,
}


def _file(name: str, build: Callable[..., Any], **fields: Any) -> HostileFile:
    def make(path: Path, bait: Bait) -> None:
        built = build()
        path.write_bytes(built if isinstance(built, bytes) else built.SerializeToString())

    return HostileFile(f"onnx-{name}", "onnx", make, **fields)


def _bomb(name: str, nodes: Sequence[onnx.NodeProto], stored: dict[str, Any]) -> HostileFile:
    """A file of `onnx_bombs`, which has no answer of the shape that it promises."""

    def make(path: Path, bait: Bait) -> None:
        save(path, nodes, stored)

    return HostileFile(f"onnx-bomb-{name}", "onnx", make, lambda x: x[:0], slow=True)


def files() -> list[HostileFile]:
    """All of them."""
    unsteady = {"dice": {"right": None}}
    return [
        *(_file(name, build, slow=True) for name, build in SLOW.items()),
        *(_file(name, build, **unsteady.get(name, {})) for name, build in PLAIN.items()),
        *(_bomb(f"folded-{name.replace(' ', '-')}", *item) for name, item in FOLDED.items()),
        *(_bomb(f"computed-{name}", *item) for name, item in COMPUTED.items()),
    ]
