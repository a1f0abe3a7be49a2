"""ONNX files whose weights lie where no model may read."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from .bait import Bait
from .kinds import HostileFile
from .onnx_graphs import ADD, FLOAT, array, model


def outside(name: str, location: str, dims: Sequence[int] = (3,), **more: str) -> TensorProto:
    """A tensor whose values lie in another file."""
    tensor = TensorProto(name=name, data_type=FLOAT, dims=dims, data_location=1)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _linked(link: Callable[[Path, Path], object]) -> Callable[[Path, Bait], onnx.ModelProto]:
    def make(path: Path, bait: Bait) -> onnx.ModelProto:
        link(path.parent / "weights.bin", bait.secret)
        return model(ADD, [outside("w", "weights.bin")])

    return make


def _elsewhere(location: str) -> Callable[[Path, Bait], onnx.ModelProto]:
    def make(path: Path, bait: Bait) -> onnx.ModelProto:
        near = os.path.relpath(bait.secret, path.parent)
        told = location.replace("{near}", near).replace("{secret}", str(bait.secret))
        return model(ADD, [outside("w", told)])

    return make


def _placed(place: Callable[[TensorProto], onnx.ModelProto]) -> Any:
    def make(path: Path, bait: Bait) -> onnx.ModelProto:
        return place(outside("w", os.path.relpath(bait.secret, path.parent)))

    return make


def _in_attribute(tensor: TensorProto) -> onnx.ModelProto:
    return model([helper.make_node("Constant", [], ["w"], value=tensor), *ADD])


def _in_branch(tensor: TensorProto) -> onnx.ModelProto:
    tensor.name = "inner"
    result = helper.make_tensor_value_info("r", FLOAT, None)
    body = [helper.make_node("Identity", ["inner"], ["r"])]
    branch = helper.make_graph(body, "branch", [], [result], [tensor])
    choice = helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch)
    return model([choice, *ADD], [array("c", True, np.bool_)])


def _in_function(tensor: TensorProto) -> onnx.ModelProto:
    body = [
        helper.make_node("Constant", [], ["w"], value=tensor),
        helper.make_node("Add", ["a", "w"], ["b"]),
    ]
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("evil", "Plus", ["a"], ["b"], body, opsets)
    return model([helper.make_node("Plus", ["h"], ["y"], domain="evil")], functions=[function])


def _sparse(tensor: TensorProto) -> onnx.ModelProto:
    built = model(ADD)
    sparse = built.graph.sparse_initializer.add()
    sparse.dims[:] = [3]
    sparse.values.CopyFrom(tensor)
    sparse.values.name = "w"
    sparse.indices.CopyFrom(array("", [0, 1, 2], np.int64))
    return built


def _context(tensor: TensorProto) -> onnx.ModelProto:
    """A compiled graph of an execution provider, read from a file."""
    location = tensor.external_data[0].value
    return model(
        [
            helper.make_node(
                "EPContext",
                ["h"],
                ["y"],
                domain="com.microsoft",
                embed_mode=0,
                ep_cache_context=location,
                main_context=1,
            )
        ]
    )


FILES: dict[str, Any] = {
    "above": _elsewhere("{near}"),
    "absolute": _elsewhere("{secret}"),
    "absolute-device": _elsewhere("/dev/zero"),
    "memory-marker": _elsewhere("*/_ORT_MEM_ADDR_/*"),
    "memory-marker-with-path": _elsewhere("*/_ORT_MEM_ADDR_/*/{secret}"),
    "own-file": _elsewhere("model.onnx"),
    "own-folder": _elsewhere("."),
    "null-in-location": _elsewhere("weights.bin\0{secret}"),
    "url": _elsewhere("file://{secret}"),
    "symbolic-link": _linked(lambda link, secret: link.symlink_to(secret)),
    "hard-link": _linked(lambda link, secret: link.hardlink_to(secret)),
    "link-to-zeros": _linked(lambda link, secret: link.symlink_to("/dev/zero")),
    "fifo": _linked(lambda link, secret: os.mkfifo(link)),
    "folder-as-data": _linked(lambda link, secret: link.mkdir()),
    "secret-in-attribute": _placed(_in_attribute),
    "secret-in-branch": _placed(_in_branch),
    "secret-in-function": _placed(_in_function),
    "secret-in-sparse": _placed(_sparse),
    "secret-as-context": _placed(_context),
}


def _file(name: str, build: Callable[[Path, Bait], onnx.ModelProto]) -> HostileFile:
    def make(path: Path, bait: Bait) -> None:
        path.write_bytes(build(path, bait).SerializeToString())

    return HostileFile(f"onnx-{name}", "onnx", make)


def files() -> list[HostileFile]:
    """All of them."""
    return [_file(name, build) for name, build in FILES.items()]
