"""torch.export archives with pickles, code, paths and sizes that no exporter writes."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from exported_networks import free_rows, save
from torch import Tensor, nn

from .bait import Bait
from .kinds import HostileFile

Contents = dict[str, bytes]
Document = dict[str, Any]
MANY_NODES = 150_000


class Net(nn.Module):
    """The honest network, with an operator to edit."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.eye(4)[:3])

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.w) + 0


class _Payload:
    """What creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@cache
def _saved() -> tuple[tuple[str, bytes], ...]:
    example = (torch.rand(2, 4),)
    with TemporaryDirectory() as folder:
        path = save(Path(folder) / "net.pt2", Net().eval(), example, dynamic=free_rows(example))
        with zipfile.ZipFile(path) as file:
            return tuple((name, file.read(name)) for name in file.namelist())


def honest_records() -> Contents:
    """The records of the honest archive, by name."""
    return dict(_saved())


def _named(contents: Contents, end: str) -> str:
    return next(name for name in contents if name.endswith(end))


def _node(document: Document, position: int) -> Document:
    found: Document = document["graph_module"]["graph"]["nodes"][position]
    return found


def _target(name: str) -> Callable[[Document, Bait], None]:
    def change(document: Document, bait: Bait) -> None:
        _node(document, 0)["target"] = name

    return change


def _full(size: int, target: str = "torch.ops.aten.full.default") -> Any:
    """The last operator makes a tensor of a size that the file says."""

    def change(document: Document, bait: Bait) -> None:
        node = _node(document, -1)
        node["target"] = target
        node["inputs"] = [
            {"name": "size", "arg": {"as_ints": [size, 3]}, "kind": 1},
            {"name": "fill_value", "arg": {"as_float": 1.0}, "kind": 1},
        ]

    return change


def _strided(document: Document, bait: Bait) -> None:
    node = _node(document, -1)
    node["target"] = "torch.ops.aten.as_strided.default"
    node["inputs"] = [
        node["inputs"][0] | {"name": "self"},
        {"name": "size", "arg": {"as_ints": [2, 3]}, "kind": 1},
        {"name": "stride", "arg": {"as_ints": [3, 1]}, "kind": 1},
        {"name": "storage_offset", "arg": {"as_int": 2**40}, "kind": 1},
    ]


def _expression(text: str) -> Callable[[Document, Bait], None]:
    def change(document: Document, bait: Bait) -> None:
        (size, *_) = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        size["as_expr"]["expr_str"] = text.replace("{made}", str(bait.made))

    return change


def _names(document: Document, bait: Bait) -> None:
    text = f"x): __import__('os').mkdir({str(bait.made)!r})\ndef f("
    rest = json.dumps(document).replace('"x"', json.dumps(text))
    document.clear()
    document.update(json.loads(rest))


def _many_nodes(document: Document, bait: Bait) -> None:
    nodes = document["graph_module"]["graph"]["nodes"]
    nodes += [nodes[-1] | {"metadata": {}}] * MANY_NODES


def _absent_input(document: Document, bait: Bait) -> None:
    _node(document, -1)["inputs"][0]["arg"] = {"as_tensor": {"name": "absent"}}


def _itself(document: Document, bait: Bait) -> None:
    node = _node(document, -1)
    node["inputs"][0]["arg"] = {"as_tensor": {"name": node["outputs"][0]["as_tensor"]["name"]}}


def _control_characters(document: Document, bait: Bait) -> None:
    document["graph_module"]["metadata"] = {"name": "\x1b[2J"}
    for node in document["graph_module"]["graph"]["nodes"]:
        node["metadata"]["nn_module_stack"] = "L__self__,,a.Net;L__self___x,\x1b[2J\n,torch.nn.ReLU"


def _no_document(document: Document, bait: Bait) -> None:
    document.clear()


# Changes of the program.
DOCUMENTS: dict[str, Callable[[Document, Bait], None]] = {
    "runs-a-command": _target("torch.os.system"),
    "loads-a-library": _target("torch.ops.load_library"),
    "reads-a-file": _target("torch.ops.aten.from_file.default"),
    "unpickles": _target("torch.serialization.load"),
    "calls-a-class": _target("torch.ops.aten.__class__.__init__"),
    "huge-tensor": _full(10**12),
    "large-tensor": _full(10**9),
    "huge-size": _full(2**62),
    "far-away-memory": _strided,
    "code-as-size": _expression("__import__('os').mkdir('{made}')"),
    "power-as-size": _expression("9**9**9**9"),
    "nested-size": _expression("(" * 100_000 + "1" + ")" * 100_000),
    "code-as-name": _names,
    "many-nodes": _many_nodes,
    "absent-input": _absent_input,
    "itself-as-input": _itself,
    "control-characters": _control_characters,
    "empty-document": _no_document,
}


def _pickled_weights(contents: Contents, bait: Bait) -> None:
    name = next(name for name in contents if "/data/weights/weight_" in name)
    config = _named(contents, "model_weights_config.json")
    contents[config] = contents[config].replace(b'"use_pickle": false', b'"use_pickle": true')
    contents[name] = pickle.dumps(_Payload(bait.made))


def _pickled_example(contents: Contents, bait: Bait) -> None:
    contents[next(name for name in contents if "sample_inputs" in name)] = pickle.dumps(
        _Payload(bait.made)
    )


def _path_of_weights(contents: Contents, bait: Bait) -> None:
    config = _named(contents, "model_weights_config.json")
    told = json.loads(contents[config])
    for payload in told["config"].values():
        payload["path_name"] = f"../../../../../../../../../..{bait.secret}"
    contents[config] = json.dumps(told).encode()


def _shape_of_weights(contents: Contents, bait: Bait) -> None:
    config = _named(contents, "model_weights_config.json")
    told = json.loads(contents[config])
    for payload in told["config"].values():
        payload["tensor_meta"]["sizes"] = [{"as_int": 2**40}, {"as_int": 4}]
    contents[config] = json.dumps(told).encode()


def _leaves_its_folder(contents: Contents, bait: Bait) -> None:
    contents["../../escaped"] = contents["/tmp/escaped"] = b"x"


def _nested_document(contents: Contents, bait: Bait) -> None:
    contents[_named(contents, "models/model.json")] = b"[" * 1_000_000


def _long_number(contents: Contents, bait: Bait) -> None:
    name = _named(contents, "models/model.json")
    contents[name] = contents[name].replace(b'"major": ', b'"major": ' + b"9" * 100_000)


# Changes of the records around it.
RECORDS: dict[str, Callable[[Contents, Bait], None]] = {
    "pickled-weights": _pickled_weights,
    "pickled-example": _pickled_example,
    "secret-as-weights": _path_of_weights,
    "weights-of-huge-shape": _shape_of_weights,
    "leaves-its-folder": _leaves_its_folder,
    "nested-document": _nested_document,
    "long-number": _long_number,
}


def _zip(path: Path, contents: Contents, compression: int = zipfile.ZIP_STORED) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in contents.items():
            file.writestr(name, content)
    path.write_bytes(buffer.getvalue())


def _of_document(name: str, change: Callable[[Document, Bait], None]) -> HostileFile:
    def make(path: Path, bait: Bait) -> None:
        contents = honest_records()
        record = _named(contents, "models/model.json")
        document = json.loads(contents[record])
        change(document, bait)
        _zip(path, contents | {record: json.dumps(document).encode()})

    return HostileFile(f"exported-{name}", "pt2", make)


def _of_records(name: str, change: Callable[[Contents, Bait], None]) -> HostileFile:
    def make(path: Path, bait: Bait) -> None:
        contents = honest_records()
        change(contents, bait)
        _zip(path, contents)

    return HostileFile(f"exported-{name}", "pt2", make)


def _bomb(path: Path, bait: Bait) -> None:
    contents = honest_records()
    weights = next(name for name in contents if "/data/weights/weight_" in name)
    _zip(path, contents | {weights: bytes(1 << 28)}, zipfile.ZIP_DEFLATED)


def files() -> list[HostileFile]:
    """All of them."""
    return [
        *(_of_document(name, change) for name, change in DOCUMENTS.items()),
        *(_of_records(name, change) for name, change in RECORDS.items()),
        HostileFile("exported-zip-bomb", "pt2", _bomb),
    ]
