"""One model file of a repository with its manifest, and whether either has changed."""

import os
from pathlib import Path
from typing import NamedTuple

from ...errors import InvalidRequest, NotFound
from ..manifest import Manifest, manifest_from_toml
from .paths import LABELS, MANIFEST, SAMPLES, VERSIONS, inside, model_files, plain, read_text
from .paths import version_folders as versions_of

_MANIFEST_BYTES = 1 << 20
_LABELS_BYTES = 16 << 20

Stamp = tuple[tuple[str, int, int, int], ...]  # name, size, time in ns and inode of each file


class Entry(NamedTuple):
    """A model of a repository; equal entries would load the same model.

    Args:
        name: of the folder below the repository.
        path: of the model's file.
        manifest: from the `model.toml` beside the file, else from the one in the name's folder;
            its version is the version folder's name unless it states one; its labels are those
            of a `labels.txt` unless it states them.
        stamp: of every file that the model is read from.
        samples: of real inputs to verify the model with, beside its file; None without one.
    """

    name: str
    path: Path
    manifest: Manifest
    stamp: Stamp
    samples: Path | None = None


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
    if not path or not all(plain(part) for part in parts) or "\\" in path or "\0" in path:
        raise InvalidRequest.field(
            "path", "give a path below the model repository, such as `net` or `net/1/model.onnx`"
        )
    place = inside(root, path)
    name = parts[0]
    if place.is_dir() and len(parts) == 1 and (versions := versions_of(place)):
        place = versions[-1]
    if place.is_dir():
        place = _sole_file(place, path)
    if not place.is_file() or place.name in (MANIFEST, LABELS, VERSIONS, *SAMPLES):
        raise NotFound(f"the model repository has no model {path!r}")
    return entry(root, name, place)


def entry(root: Path, name: str, file: Path) -> Entry:
    """The entry of a model file.

    Raises:
        InvalidRequest: a file of the model is wrong or leads out of the repository.
    """
    place = inside(root, file.relative_to(root).as_posix())
    return Entry(
        name, place, _manifest(root, name, place), _stamp(place), _samples(root, name, place)
    )


def version_entry(root: Path, name: str, version: str) -> Entry:
    """The entry of a version's folder.

    Raises:
        InvalidRequest: it holds two model files, or as for `entry`.
        NotFound: it holds none.
    """
    path = f"{name}/{version}"
    file = _sole_file(inside(root, path), path)
    if not file.is_file():
        raise NotFound(f"the model repository has no model {path!r}")
    return entry(root, name, file)


def _sole_file(folder: Path, path: str) -> Path:
    """The model file of a folder; the folder itself where there is none."""
    files = model_files(folder)
    if len(files) > 1:
        raise InvalidRequest.field(
            "path", f"{path} has {' and '.join(file.name for file in files)}; name one of them"
        )
    return files[0] if files else folder


def _manifest(root: Path, name: str, file: Path) -> Manifest:
    folder, manifest = root / name, Manifest()
    for place in dict.fromkeys((file.parent, folder)):
        text = read_text(root, place / MANIFEST, name, _MANIFEST_BYTES)
        if text is not None:
            manifest = _parsed(text, name)
            break
    updates: dict[str, object] = {}
    if "version" not in manifest.model_fields_set and file.parent != folder:
        updates["version"] = file.parent.name
    if manifest.labels is None and (labels := _labels(root, name, (file.parent, folder))):
        updates["labels"] = labels
    return manifest.model_copy(update=updates)


def _parsed(text: str, name: str) -> Manifest:
    try:
        return manifest_from_toml(text)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"the model.toml of {name!r}: {error.message}", violations=error.violations
        ) from None


def _labels(root: Path, name: str, folders: tuple[Path, ...]) -> tuple[str, ...] | None:
    for folder in dict.fromkeys(folders):
        text = read_text(root, folder / LABELS, name, _LABELS_BYTES)
        if text is None:
            continue
        labels = tuple(line.strip() for line in text.rstrip().split("\n"))
        if "" in labels:
            raise InvalidRequest.field(
                "labels",
                f"line {labels.index('') + 1} of the labels.txt of {name!r} is empty; "
                "write one class on each line",
            )
        return labels
    return None


def _samples(root: Path, name: str, file: Path) -> Path | None:
    found = [file.parent / item for item in SAMPLES if (file.parent / item).is_file()]
    if len(found) > 1:
        raise InvalidRequest.field(
            "samples", f"{name!r} has {' and '.join(SAMPLES)} beside its model; keep one of them"
        )
    for place in found:
        inside(root, place.relative_to(root).as_posix())
    return found[0] if found else None


def _stamp(file: Path) -> Stamp:
    """An ONNX file may keep its weights in any file beside it."""
    files = [file, *(file.parent / item for item in SAMPLES)]
    if file.suffix == ".onnx":
        files += [
            item
            for item in file.parent.iterdir()
            if plain(item.name)
            and item.name not in (file.name, MANIFEST, LABELS, VERSIONS, *SAMPLES)
        ]
    found = []
    for item in sorted(files):
        status = os.stat(item) if item.is_file() else None
        if status is not None:
            found.append((item.name, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)
