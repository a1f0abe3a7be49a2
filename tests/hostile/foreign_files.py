"""Files that are no models, or no longer."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from onnx import helper

from . import exported_files, onnx_graphs, torchscript_archive
from .bait import Bait
from .kinds import HostileFile


def _archive(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return buffer.getvalue()


def torchscript() -> bytes:
    """The honest TorchScript archive."""
    return _archive(torchscript_archive.honest_records())


def onnx() -> bytes:
    """The honest ONNX file."""
    built = onnx_graphs.model([helper.make_node("Identity", ["h"], ["y"])])
    return bytes(built.SerializeToString())


def exported() -> bytes:
    """The honest torch.export archive."""
    return _archive(exported_files.honest_records())


def _checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.eye(3)}, buffer)
    return buffer.getvalue()


CONTENTS: dict[str, tuple[str, Any]] = {
    "empty-pt": ("pt", bytes),
    "empty-onnx": ("onnx", bytes),
    "empty-pt2": ("pt2", bytes),
    "one-byte": ("pt", lambda: b"P"),
    "zeros": ("onnx", lambda: bytes(1_000_000)),
    "text": ("onnx", lambda: b"../../etc/passwd\n" * 1000),
    "program": ("pt", lambda: b"\x7fELF" + bytes(1000)),
    "pickle": ("pt", lambda: pickle.dumps({"a": 1})),
    "checkpoint": ("pt", _checkpoint),
    "empty-zip": ("pt", lambda: _archive({})),
    "other-zip": ("pt2", lambda: _archive({"a": b"b"})),
    "truncated-torchscript": ("pt", lambda: torchscript()[:-300]),
    "truncated-onnx": ("onnx", lambda: onnx()[:-20]),
    "truncated-exported": ("pt2", lambda: exported()[:-300]),
    "torchscript-and-more": ("pt", lambda: torchscript() + bytes(100_000)),
    "more-and-torchscript": ("pt", lambda: bytes(100_000) + torchscript()),
    "onnx-called-torchscript": ("pt", onnx),
    "torchscript-called-onnx": ("onnx", torchscript),
}


def _file(name: str, suffix: str, content: Any) -> HostileFile:
    def make(path: Path, bait: Bait) -> None:
        path.write_bytes(content())

    return HostileFile(f"foreign-{name}", suffix, make)


def files() -> list[HostileFile]:
    """All of them."""
    return [_file(name, suffix, content) for name, (suffix, content) in CONTENTS.items()]
