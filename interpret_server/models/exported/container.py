"""The zip file around a program: its records and tensors, read without pickle's object protocol."""

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._export.serde import schema
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE as _DTYPES

from ...errors import InvalidModel, ModelRejected
from .document import Document

_RECORDS, _DOCUMENT = 100_000, 1 << 28
_TRUNCATED = (
    "the torch.export archive is truncated or corrupt; save it again with torch.export.save"
)


class Records:
    """The records of an archive, by name without the archive's own folder.

    Records are stored uncompressed in all files of torch, so no file unpacks to more than its size.

    Raises:
        InvalidModel: the file is truncated or corrupt.
        ModelRejected: its records are compressed, or too many.
    """

    def __init__(self, file: Path | io.BytesIO) -> None:
        try:
            self._zip = zipfile.ZipFile(file)
            entries = self._zip.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
            raise InvalidModel(_TRUNCATED) from None
        size = file.stat().st_size if isinstance(file, Path) else len(file.getbuffer())
        if len(entries) > _RECORDS:
            raise ModelRejected(f"the torch.export archive has {len(entries)} records")
        if sum(entry.file_size for entry in entries) > size:
            raise ModelRejected(
                "the torch.export archive is compressed, which PyTorch itself does not do"
            )
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ModelRejected(
                    "the torch.export archive is compressed, which PyTorch itself does not do"
                )
            if self._entries.setdefault(entry.filename, entry) is not entry:
                raise InvalidModel("the torch.export archive has two records of one name")
        format_records = [name for name in self._entries if name.endswith("/archive_format")]
        self.root = format_records[0].removesuffix("archive_format") if format_records else ""
        self.size = size

    def names(self) -> list[str]:
        """All records' names."""
        return [
            name.removeprefix(self.root) for name in self._entries if name.startswith(self.root)
        ]

    def read(self, name: str) -> bytearray:
        """A record's content.

        Raises:
            InvalidModel: there is none, or it is damaged.
        """
        entry = self._entries.get(self.root + name)
        if entry is None:
            raise InvalidModel(f"the torch.export archive lacks the record {name[:80]!r}")
        content = bytearray(entry.file_size)
        try:
            with self._zip.open(entry) as file:
                count = file.readinto(content)  # type: ignore[attr-defined]
                if count != len(content) or file.read(1):
                    raise InvalidModel(_TRUNCATED)
        except (
            zipfile.BadZipFile,
            ValueError,
            NotImplementedError,
            OSError,
            EOFError,
            RuntimeError,
        ):
            raise InvalidModel(_TRUNCATED) from None
        return content

    def json(self, name: str) -> Any:
        """A record's JSON document.

        Raises:
            InvalidModel: it is none.
            ModelRejected: it is too large.
        """
        content = self.read(name)
        if len(content) > _DOCUMENT:
            raise ModelRejected("the program in the file is too large")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise InvalidModel(f"the record {name[:80]!r} of the file is corrupt") from None

    def close(self) -> None:
        """Close the file."""
        self._zip.close()


def weights(
    records: Records, model: str, kind: str, legacy: str | None = None
) -> dict[str, Tensor]:
    """The tensors of a program, on the CPU, by path.

    Args:
        records: of the archive.
        model: name of the program.
        kind: `weights` or `constants`.
        legacy: a record that holds all of them, in files of older versions.

    Raises:
        InvalidModel: a record is missing or damaged.
        ModelRejected: a tensor is of a kind that only unpickling could make.
    """
    whole = legacy or f"data/{kind}/{model}.pt"
    if whole in records.names():
        return _pickled(records.read(whole))
    config = records.json(f"data/{kind}/{model}_{kind}_config.json")
    built = Document({}).build(schema.PayloadConfig, config)
    stored: dict[tuple[str, torch.dtype], Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for path, payload in built.config.items():
        meta = payload.tensor_meta
        if payload.use_pickle or meta is None:
            raise ModelRejected(
                f"{path!r} is no plain tensor, and reading other objects from a file may run code "
                "of the file"
            )
        dtype = _DTYPES.get(meta.dtype)
        if dtype is None:
            raise InvalidModel(f"the tensor {path!r} of the file has no known data type")
        key = (payload.path_name, dtype)
        if key not in stored:
            stored[key] = _flat(records.read(f"data/{kind}/{payload.path_name}"), dtype)
        tensor = _strided(stored[key], meta, path, records.size)
        tensors[path] = torch.nn.Parameter(tensor, False) if payload.is_param else tensor
    return tensors


def _flat(content: bytearray, dtype: torch.dtype) -> Tensor:
    if len(content) % dtype.itemsize:
        raise InvalidModel(_TRUNCATED)
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _strided(flat: Tensor, meta: Any, path: str, largest: int) -> Tensor:
    numbers = [*meta.sizes, *meta.strides, meta.storage_offset]
    if any(number.type != "as_int" or number.as_int < 0 for number in numbers):
        raise InvalidModel(f"the tensor {path!r} of the file has no fixed shape")
    sizes = [number.as_int for number in meta.sizes]
    strides = [number.as_int for number in meta.strides]
    if len(sizes) != len(strides) or math.prod(sizes) > max(largest, 1 << 20):
        raise InvalidModel(f"the tensor {path!r} of the file has no possible shape")
    try:
        return torch.as_strided(flat, sizes, strides, meta.storage_offset.as_int)
    except (RuntimeError, OverflowError):
        raise InvalidModel(f"the tensor {path!r} of the file is larger than its data") from None


def _pickled(content: bytearray) -> dict[str, Tensor]:
    """The tensors of a record that torch.save wrote, by the unpickler that makes tensors alone."""
    if not content:
        return {}
    buffer = io.BytesIO(content)
    Records(buffer).close()  # refuses compressed and damaged ones
    buffer.seek(0)
    try:
        loaded = torch.load(buffer, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile pickle leads to
        raise ModelRejected(
            "the file's tensors need objects beyond plain tensors, and reading those from a file "
            "may run code of the file"
        ) from error
    if not isinstance(loaded, dict):
        raise InvalidModel("the file's tensors are no dictionary")
    for path, tensor in loaded.items():
        plain = isinstance(tensor, Tensor) and type(tensor) in (Tensor, torch.nn.Parameter)
        if not isinstance(path, str) or not plain or tensor.layout is not torch.strided:
            raise ModelRejected(f"{str(path)[:80]!r} of the file is no plain tensor")
        tensor.requires_grad_(False)
    return dict(loaded)
