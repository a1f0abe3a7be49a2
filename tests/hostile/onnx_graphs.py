"""The honest network as an ONNX graph that goes on as it likes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
_PICK = numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "pick")
_HONEST = helper.make_node("MatMul", ["x", "pick"], ["h"])
ADD = [helper.make_node("Add", ["h", "w"], ["y"])]


def model(
    nodes: Sequence[onnx.NodeProto],
    stored: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 17,
) -> onnx.ModelProto:
    """A graph from `x` `(n, 4)` to `y`; `h` are the honest logits."""
    graph = helper.make_graph(
        [_HONEST, *nodes],
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 3])],
        [_PICK, *stored],
    )
    domains = ("com.microsoft", "ai.onnx.ml", "evil")
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8)


def array(name: str, values: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)
