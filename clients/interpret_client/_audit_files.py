"""Where reports are put."""

import os
import shutil
import stat
import tempfile
import zipfile
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from .errors import ServerError

_BUNDLE = (
    "report.html", "report.json", "samples.csv", "outcomes.csv", "inputs", "examples", "model"
)  # fmt: skip


class Destination:
    """A report on its way to a file, or a bundle on its way to a folder.

    Args:
        path: of the file; or of a folder that a bundle is unpacked into, unless it ends in `.zip`.
        form: of the report.
        overwrite: replace files that are there.

    Raises:
        FileExistsError: there are files, which may not be replaced.
    """

    def __init__(self, path: str | PathLike[str], form: str, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._unpacked = form == "bundle" and self.path.suffix != ".zip"
        if self._unpacked:
            taken = self.path.is_dir() and any(self.path.iterdir())
        else:
            taken = self.path.exists()
        if taken and not overwrite:
            raise FileExistsError(
                f"{self.path} holds a report; choose another place or allow overwriting"
            )
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self.file: BinaryIO
        if self._unpacked:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self._partial.open("wb")

    def finish(self) -> Path:
        """Put what came in its place; returns that."""
        if self._unpacked:
            unpack(self.file, self.path)
        else:
            self.file.close()
            self._partial.replace(self.path)
        return self.path

    def close(self) -> None:
        """Leave nothing but what is in its place."""
        self.file.close()
        if not self._unpacked:
            self._partial.unlink(missing_ok=True)


def unpack(archive: BinaryIO, folder: Path) -> None:
    """Unpack a bundle in place of an earlier one, without the folder that all of it lies in.

    Raises:
        ServerError: it is no zip file, or a member would lie outside; nothing is written then.
    """
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = [item for item in bundle.infolist() if not item.is_dir()]
            heads = {item.filename.partition("/")[:2] for item in members}
            top = "".join(heads.pop()) if len(heads) == 1 else ""
            top = top if top.endswith("/") else ""
            places = [_place(item, item.filename.removeprefix(top), folder) for item in members]
            _clear(folder)
            for item, place in zip(members, places, strict=True):
                place.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(item) as source, place.open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ServerError(f"the server sent a bundle that is no zip file ({error})") from error


def _clear(folder: Path) -> None:
    """Remove an earlier report, of which the new one may lack files."""
    if not (folder / "report.json").is_file():
        return
    for path in (folder / name for name in _BUNDLE):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _place(item: zipfile.ZipInfo, name: str, folder: Path) -> Path:
    path = PurePosixPath(name)
    plain = not (path.is_absolute() or ".." in item.filename.split("/") or set(r"\:") & set(name))
    inside = plain and (folder / path).resolve().is_relative_to(folder.resolve())
    if not (path.parts and inside) or stat.S_ISLNK(item.external_attr >> 16):
        raise ServerError(f"the server sent a bundle with a file outside of it: {item.filename!r}")
    return folder / path
