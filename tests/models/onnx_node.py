"""One node with stored and given inputs, of the default domain or of com.microsoft."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper


@dataclass(frozen=True)
class Node:
    """One node.

    Args:
        inputs: arrays or stored tensors; None for one that is left out.
        fed: positions of the inputs that are the graph's; the others are stored.
        outputs: how many.
        domain: of the operator.
        results: data type and rank of each output, None for one that is left out; inferred where
            empty, which onnx can do for its own operators.
    """

    operator: str
    inputs: Sequence[Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    fed: Sequence[int] = (0,)
    outputs: int = 1
    opset: int = 21
    domain: str = ""
    results: Sequence[tuple[Any, int] | None] = ()

    def __str__(self) -> str:
        told = [f"{v.dtype}{list(v.shape)}" for v in map(np.asarray, self.inputs) if v.dtype != "O"]
        return "-".join([self.operator, *map(str, self.attributes.values()), *told])

    def write(self, path: Path) -> list[torch.Tensor]:
        names, stored, infos = [], [], []
        for index, value in enumerate(self.inputs):
            names.append("" if value is None else f"v{index}")
            if value is None:
                continue
            proto = (
                value
                if isinstance(value, onnx.TensorProto)
                else numpy_helper.from_array(np.asarray(value), f"v{index}")
            )
            proto.name = f"v{index}"
            if index in self.fed:
                infos.append(helper.make_tensor_value_info(proto.name, proto.data_type, proto.dims))
            else:
                stored.append(proto)
        told = [
            None if item is None else _info(f"y{index}", *item)
            for index, item in enumerate(self.results)
        ] or [onnx.ValueInfoProto(name=f"y{index}") for index in range(self.outputs)]
        outputs = ["" if item is None else item.name for item in told]
        node = helper.make_node(
            self.operator, names, outputs, "node", domain=self.domain, **self.attributes
        )
        save(path, [node], infos, stored, [item for item in told if item], self.opset)
        return [torch.from_numpy(np.array(self.inputs[index])) for index in self.fed]


def _info(name: str, dtype: Any, rank: int) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, ["?"] * rank)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    stored: Sequence[onnx.TensorProto],
    outputs: Sequence[onnx.ValueInfoProto],
    opset: int = 21,
) -> None:
    """Save a graph; outputs without a type get the one that onnx infers."""
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(stored))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    inferred = {item.name: item for item in onnx.shape_inference.infer_shapes(model).graph.output}
    for item in model.graph.output:
        item.CopyFrom(inferred[item.name])
    path.write_bytes(model.SerializeToString())
