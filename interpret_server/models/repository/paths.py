"""Model repositories: `DIR/<name>/<version>/model.{pt,onnx,pt2}`. Imports no torch."""

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import InvalidRequest, NotFound
from .manifest import Manifest, manifest_from_toml

FILES = ("model.pt", "model.onnx", "model.pt2")
MANIFEST = "model.toml"
_MANIFEST_BYTES = 1 << 20


class Entry(NamedTuple):
    """A model of a repository.

    Args:
        name: of the folder below the repository.
        path: of the model's file.
        manifest: from the `model.toml` beside the file, else from the one in the name's folder;
            its version is the version folder's name unless it states one.
    """

    name: str
    path: Path
    manifest: Manifest


def scan(root: Path) -> tuple[Entry, ...]:
    """The newest version of every model of a repository, in the order of their names.

    Raises:
        NotFound: the repository is no folder.
        InvalidRequest: a `model.toml` is wrong; the message names the model and the field.
    """
    if not root.is_dir():
        raise NotFound("the model repository is not a folder")
    names = sorted(item.name for item in root.iterdir() if item.is_dir() and _plain(item.name))
    return tuple(resolve(root, name) for name in names if _versions(_inside(root, name)))


def resolve(root: Path, path: str) -> Entry:
    """The model that a client names by a path below the repository.

    Args:
        root: the repository's folder.
        path: `<name>` (its newest version), `<name>/<version>`, or a file's path
            `<name>/<version>/model.onnx`; always with forward slashes.

    Raises:
        InvalidRequest: the path would leave the repository, or its `model.toml` is wrong.
        NotFound: there is no such model.
    """
    parts = path.split("/")
    if not path or not all(_plain(part) for part in parts) or "\\" in path or "\0" in path:
        raise InvalidRequest.field(
            "path", "give a path below the model repository, such as `net` or `net/1/model.onnx`"
        )
    place = _inside(root, path)
    name = parts[0]
    if place.is_dir() and len(parts) == 1 and (versions := _versions(place)):
        place = versions[-1]
    if place.is_dir():
        files = [place / file for file in FILES if (place / file).is_file()]
        if len(files) > 1:
            raise InvalidRequest.field(
                "path",
                f"{path} has {' and '.join(file.name for file in files)}; name one of them",
            )
        place = files[0] if files else place
    if not place.is_file() or place.name == MANIFEST:
        raise NotFound(f"the model repository has no model {path!r}")
    place = _inside(root, str(PurePosixPath(*place.relative_to(root).parts)))
    return Entry(name, place, _manifest(root, name, place))


def _plain(part: str) -> bool:
    return bool(part) and not part.startswith(".") and ":" not in part


def _inside(root: Path, path: str) -> Path:
    """`root/path`, unless a link in it leads out of the repository."""
    place = root / path
    try:
        real, base = place.resolve(), root.resolve()
    except (OSError, RuntimeError):
        raise NotFound(f"the model repository has no model {path!r}") from None
    if not real.is_relative_to(base):
        raise InvalidRequest.field("path", f"{path!r} leads out of the model repository")
    return place


def _versions(folder: Path) -> list[Path]:
    """The version folders that hold a model, oldest first by natural order (9 before 10)."""
    found = [
        item
        for item in folder.iterdir()
        if item.is_dir() and _plain(item.name) and any((item / file).is_file() for file in FILES)
    ]
    return sorted(found, key=lambda item: _natural(item.name))


def _natural(text: str) -> list[tuple[int, int, str]]:
    return [
        (1, int(part), part) if part.isdecimal() else (0, 0, part)
        for part in re.split(r"(\d+)", text)
        if part
    ]


def _manifest(root: Path, name: str, file: Path) -> Manifest:
    folder = root / name
    for place in dict.fromkeys((file.parent / MANIFEST, folder / MANIFEST)):
        if place.is_file():
            manifest = read_manifest(
                _inside(root, str(PurePosixPath(*place.relative_to(root).parts))), name
            )
            break
    else:
        manifest = Manifest()
    if "version" in manifest.model_fields_set or file.parent == folder:
        return manifest
    return manifest.model_copy(update={"version": file.parent.name})


def read_manifest(path: Path, name: str) -> Manifest:
    """The manifest of a `model.toml`.

    Args:
        path: the file.
        name: the model's name, for the message.

    Raises:
        InvalidRequest: with one violation per wrong field, such as `manifest.inputs[0].bounds`.
    """
    try:
        if path.stat().st_size > _MANIFEST_BYTES:
            raise InvalidRequest.field("manifest", f"the model.toml of {name!r} is over 1 MiB")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InvalidRequest.field(
            "manifest", f"the model.toml of {name!r} cannot be read as UTF-8 text"
        ) from None
    try:
        return manifest_from_toml(text)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"the model.toml of {name!r}: {error.message}", violations=error.violations
        ) from None
