"""Which format a model file has, told by its bytes. Runs no code of the file; imports no torch."""

import hashlib
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

from ..errors import InvalidModel, ModelRejected, NotFound
from .manifest import Format

_NAMES = {
    Format.TORCHSCRIPT: "a TorchScript archive",
    Format.ONNX: "an ONNX model",
    Format.EXPORTED_PROGRAM: "a torch.export archive",
}
_EXPORTED = "serialized_exported_program.json"  # of PyTorch 2.1 to 2.7
_EXPORTED_MODEL = re.compile(r"(^|/)models/[^/]+\.json$")  # since PyTorch 2.8
_ONNX_GRAPH = 7  # the field of ModelProto that holds the graph
_PICKLE = b"\x80"


def identify(path: Path, stated: Format | None = None) -> Format:
    """The format of a file.

    Args:
        path: the file.
        stated: the manifest's format, if it names one.

    Raises:
        NotFound: there is no such file.
        InvalidModel: the file is truncated, of no known format, or not of the stated format.
        ModelRejected: the file is an AOTInductor package, which holds no program.
    """
    try:
        with path.open("rb") as file:
            found = _sniff(file)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFound("the model's file does not exist") from None
    if stated is not None and stated is not found:
        raise InvalidModel(
            f"manifest.format: the manifest says {_NAMES[stated]}, but the file is "
            f"{_NAMES[found]}; correct the format or leave it out"
        )
    return found


def digest(path: Path) -> tuple[str, int]:
    """A file's sha256 in lowercase hexadecimal, and its size in bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _sniff(file: BinaryIO) -> Format:
    start = file.read(4)
    if start == b"PK\x03\x04":
        return _sniff_zip(file)
    if start[:1] == _PICKLE:
        raise InvalidModel(
            "the file is a pickled checkpoint, which holds no program that can be served; "
            "export the model to TorchScript, ONNX or torch.export"
        )
    if _is_onnx(file):
        return Format.ONNX
    raise InvalidModel(
        "the file is no TorchScript or torch.export archive and no ONNX model, or it is truncated"
    )


def _sniff_zip(file: BinaryIO) -> Format:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise InvalidModel("the file is a truncated or corrupt archive") from None
    if any(name.endswith("constants.pkl") for name in names):
        return Format.TORCHSCRIPT
    if _EXPORTED in names or any(_EXPORTED_MODEL.search(name) for name in names):
        return Format.EXPORTED_PROGRAM
    if any("data/aotinductor/" in name or name.endswith("/archive_format") for name in names):
        raise ModelRejected(
            "the file is an AOTInductor package, which holds compiled code and no program; save "
            "the exported program with torch.export.save instead"
        )
    if any(name.endswith("data.pkl") for name in names):
        raise InvalidModel(
            "the file is a pickled checkpoint (saved with torch.save), which holds no program "
            "that can be served; export the model to TorchScript, ONNX or torch.export"
        )
    raise InvalidModel("the file is a zip archive, but no TorchScript or torch.export archive")


def _is_onnx(file: BinaryIO) -> bool:
    """Whether the file is one whole protobuf message with a graph at ModelProto's place."""
    size = file.seek(0, 2)
    file.seek(0)
    graph = False
    while file.tell() < size:
        key = _varint(file)
        if key is None or key >> 3 == 0:
            return False
        match key & 7:
            case 0:
                skip = 0 if _varint(file) is not None else None
            case 1:
                skip = 8
            case 2:
                skip = _varint(file)
                graph |= key >> 3 == _ONNX_GRAPH
            case 5:
                skip = 4
            case _:
                skip = None
        if skip is None or file.tell() + skip > size:
            return False
        file.seek(skip, 1)
    return graph


def _varint(file: BinaryIO) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None
