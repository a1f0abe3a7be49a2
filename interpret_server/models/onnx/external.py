"""Weights that an ONNX file keeps in files beside it."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from onnx import TensorProto

from ...errors import InvalidModel
from .limits import Limits, exceeds

_ODD = frozenset("/\\\0:")


def is_external(tensor: TensorProto) -> bool:
    """Whether the values lie in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def read_external(tensors: Iterable[TensorProto], folder: Path, limits: Limits) -> None:
    """Put the values of external tensors into the tensors themselves.

    Each must lie in a plain file of `folder` itself that has no other name: a link, symbolic or
    hard, could lead to a file that the model's owner may not read. The file is checked once open,
    so that nobody can put another one in its place.

    Raises:
        InvalidModel: a location is no such file, or the file is too short or too large.
    """
    opened: dict[str, _Data] = {}
    total = 0
    try:
        for tensor in filter(is_external, tensors):
            told = {entry.key: entry.value for entry in tensor.external_data}
            location = told.get("location", "")
            if location not in opened:
                opened[location] = _Data(tensor.name, location, folder)
            values = opened[location].read(tensor.name, told)
            total += len(values)
            if total > limits.data:
                raise exceeds("the weights beside the file", total, limits.data)
            tensor.raw_data = values
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    finally:
        for data in opened.values():
            data.close()


class _Data:
    def __init__(self, name: str, location: str, folder: Path) -> None:
        odd = not isinstance(location, str) or location in ("", ".", "..")
        if odd or set(location) & _ODD:
            raise InvalidModel(
                f"model: the data of {name!r} must lie in a file beside the model, "
                f"not in {location!r}"
            )
        refusal = InvalidModel(
            f"model: the data of {name!r} lies in {location!r}, which is no plain file "
            "beside the model, or has a second name as a hard link"
        )
        try:
            self.file = os.open(folder / location, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise refusal from error
        status = os.fstat(self.file)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            self.close()
            raise refusal

    def read(self, name: str, told: dict[str, str]) -> bytes:
        short = InvalidModel(
            f"model: the data of {name!r} does not lie within the file beside the model"
        )
        try:
            start = int(told.get("offset") or 0)
            length = int(told.get("length") or self.size - start)
        except ValueError as error:
            raise short from error
        if start < 0 or length < 0 or start + length > self.size:
            raise short
        parts = []
        while length:
            part = os.pread(self.file, min(length, 2**30), start)
            if not part:
                raise short
            parts.append(part)
            start, length = start + len(part), length - len(part)
        return b"".join(parts)

    def close(self) -> None:
        os.close(self.file)
