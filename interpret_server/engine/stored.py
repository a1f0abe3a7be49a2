"""Copies of loaded models' files, from which the same models can be loaded later.

A copy is a folder: `model.json` (the manifest, the file's digest, names), `model/` with the file
and the files beside it that it needs, and `samples/`. Imports no torch.
"""

import hashlib
import json
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from ..durable import sync_folder
from ..errors import AlreadyExists, FailedPrecondition, NotFound
from ..models.manifest import Manifest
from .api import ModelInfo, StoredModel
from .workers.documents import manifest_from_json, manifest_to_json
from .workers.errors import ProtocolError

_DOCUMENT, _MODEL, _SAMPLES = "model.json", "model", "samples"
_CHUNK = 1 << 22  # bytes


@dataclass(frozen=True)
class ModelFiles:
    """The files that a model was loaded from.

    Args:
        path: of the model's file.
        manifest: with which it was loaded.
        samples: real inputs that it was verified with.
        descriptor: of the open file; see `opened`.
    """

    path: Path
    manifest: Manifest
    samples: Path | None = None
    descriptor: int | None = None

    def opened(self) -> Self:
        """The same with the file open, as long as this is used: it can be copied when it is gone.

        An upload's file goes when its call ends.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return self
        opened = replace(self, descriptor=descriptor)
        weakref.finalize(opened, os.close, descriptor).atexit = False
        return opened

    def store(self, info: ModelInfo, folder: Path) -> StoredModel:
        """Copy the files into a folder, which appears at once and whole.

        Args:
            info: what is known of the model.
            folder: must not exist yet; the folder around it must.

        Raises:
            AlreadyExists: there is such a folder.
            FailedPrecondition: a file is gone or has changed since the model was loaded, or the
                copy cannot be written.
        """
        if folder.exists():
            raise AlreadyExists(f"{folder.name} exists already")
        try:
            made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        except OSError as error:
            raise _unwritten(error) from None
        try:
            self._fill(made, info)
            os.rename(made, folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise _unwritten(error) from None
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return read_stored(folder)

    @property
    def _source(self) -> Path:
        return self.path if self.descriptor is None else Path(f"/proc/self/fd/{self.descriptor}")

    def _fill(self, made: Path, info: ModelInfo) -> None:
        (made / _MODEL).mkdir()
        path = made / _MODEL / self.path.name
        if _copy(self._source, path) != info.sha256:
            raise FailedPrecondition(
                f"the file of {info.name} has changed since it was loaded; load it again"
            )
        for name in _beside(info.files, path.name):
            _copy(self.path.parent / name, made / _MODEL / name, follow=False)
        if self.samples is not None:
            (made / _SAMPLES).mkdir()
            _copy(self.samples, made / _SAMPLES / self.samples.name)
            sync_folder(made / _SAMPLES)
        document = {
            "file": path.name,
            "sha256": info.sha256,
            "samples": None if self.samples is None else self.samples.name,
            "manifest": manifest_to_json(self.manifest),
        }
        with (made / _DOCUMENT).open("x") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(made / _MODEL)
        sync_folder(made)


def read_stored(folder: Path) -> StoredModel:
    """The model that `Worker.keep` stored in a folder.

    Raises:
        NotFound: there is no such folder, or it holds no stored model.
    """
    try:
        document = json.loads((folder / _DOCUMENT).read_bytes())
        samples = document["samples"]
        return StoredModel(
            path=folder / _MODEL / document["file"],
            manifest=manifest_from_json(document["manifest"]),
            sha256=document["sha256"],
            samples=None if samples is None else folder / _SAMPLES / samples,
        )
    except (OSError, ValueError, KeyError, TypeError, ProtocolError):
        raise NotFound(f"{folder.name} holds no stored model") from None


def _beside(names: Iterable[str], own: str) -> list[str]:
    """Names of files that may lie beside the model's: a worker tells them, and may not be honest.

    Raises:
        FailedPrecondition: one of them is no plain name.
    """
    found = sorted({*names} - {own})
    if any(name in ("", ".", "..") or {*name} & {*"/\\\0"} for name in found):
        raise FailedPrecondition("the model names files that do not lie beside its own")
    return found


def _copy(source: Path, target: Path, *, follow: bool = True) -> str:
    """Copy a plain file and return its sha256.

    Args:
        follow: links lead to it, as its owner arranged them.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    digest = hashlib.sha256()
    with open(os.open(source, flags), "rb") as read, target.open("xb") as written:
        if not stat.S_ISREG(os.fstat(read.fileno()).st_mode):
            raise FailedPrecondition(f"{target.name} is no plain file")
        while data := read.read(_CHUNK):
            digest.update(data)
            written.write(data)
        written.flush()
        os.fsync(written.fileno())
    return digest.hexdigest()


def _unwritten(error: OSError) -> FailedPrecondition:
    return FailedPrecondition(f"the model's files cannot be copied: {error.strerror or 'unknown'}")
