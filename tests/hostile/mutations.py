"""Good model files with a few random faults."""

import io
import random
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from exported_networks import free_rows, save
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn

from .onnx_graphs import model as onnx_model

_NUMBERS = (0, 1, -1, 2, 7, 2**31, 2**62, -(2**63))


class Small(nn.Module):
    """Four numbers in, three logits out, by way of eight rectifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.first(x)))


@cache
def good(suffix: str) -> bytes:
    """A good file: `pt`, `onnx` or `pt2`."""
    torch.manual_seed(0)
    net = Small().eval()
    if suffix == "pt":
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.save(torch.jit.script(net), buffer)
        return buffer.getvalue()
    if suffix == "pt2":
        example = (torch.rand(2, 4),)
        with tempfile.TemporaryDirectory() as folder:
            path = save(Path(folder) / "net.pt2", net, example, dynamic=free_rows(example))
            return path.read_bytes()
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["u"], "first", transB=1),
        helper.make_node("Relu", ["u"], ["v"], "relu"),
        helper.make_node("Gemm", ["v", "c", "d"], ["y"], "last", transB=1),
    ]
    weights = zip("abcd", net.parameters(), strict=True)
    stored = [numpy_helper.from_array(value.detach().numpy(), name) for name, value in weights]
    return bytes(onnx_model(nodes, stored).SerializeToString())


def mutated(suffix: str, seed: int) -> bytes:
    """A good file with faults that the seed alone decides."""
    rng = random.Random(seed)
    content = good(suffix)
    inside = _in_graph if suffix == "onnx" else _in_archive
    kinds: list[Callable[[bytes, random.Random], bytes]] = [inside, inside, inside, _flip]
    kinds += [_cut, _remove, _repeat]
    return rng.choice(kinds)(content, rng)


def _flip(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _span(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.choice((1, 2, 8, 100)))


def _remove(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:end] + content[start:end] * rng.choice((1, 3)) + content[end:]


def _in_archive(content: bytes, rng: random.Random) -> bytes:
    """A fault in one record, or in which there are; the archive itself is sound."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        records = {name: file.read(name) for name in file.namelist()}
    one, other = rng.choice(list(records)), rng.choice(list(records))
    match rng.randrange(8):
        case 0:
            records[one], records[other] = records[other], records[one]
        case 1:
            del records[one]
        case 2:
            records[one + "x"] = records.pop(one)
        case 3:
            records[one] = _digits(records[one], rng)
        case kind:
            records[one] = (_flip, _cut, _remove, _repeat)[kind - 4](records[one], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, record in records.items():
            file.writestr(name, record)
    return buffer.getvalue()


def _digits(content: bytes, rng: random.Random) -> bytes:
    """Another number in a text."""
    places = [at for at, byte in enumerate(content) if 48 <= byte <= 57]
    if not places:
        return content[::-1]
    at = rng.choice(places)
    return content[:at] + str(rng.choice(_NUMBERS)).encode() + content[at + 1 :]


def _in_graph(content: bytes, rng: random.Random) -> bytes:
    """A fault in an ONNX graph that protobuf cannot see."""
    model = ModelProto.FromString(content)
    graph = model.graph
    node, weight = rng.choice(graph.node), rng.choice(graph.initializer)
    match rng.randrange(9):
        case 0:
            first, second = rng.choice(graph.node), rng.choice(graph.node)
            first.op_type, second.op_type = second.op_type, first.op_type
        case 1:
            graph.node.remove(node)
        case 2:
            graph.initializer.remove(weight)
        case 3:
            node.input[rng.randrange(len(node.input))] = rng.choice(("", "x", "y", "a", "absent"))
        case 4:
            weight.dims[rng.randrange(len(weight.dims))] = rng.choice(_NUMBERS)
        case 5:
            weight.data_type = rng.randrange(30)
        case 6:
            node.attribute.add(name=rng.choice(("axis", "transA", "alpha")), i=rng.choice(_NUMBERS))
        case 7:
            node.op_type = rng.choice(("Softmax", "Loop", "Conv", "Reshape", "Gather", "Resize"))
        case _:
            weight.raw_data = np.full(len(weight.raw_data) // 4, np.nan, np.float32).tobytes()
    return model.SerializeToString()
