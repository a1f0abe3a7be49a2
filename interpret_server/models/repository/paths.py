"""Where a repository keeps its models, and that no path leads out of it."""

import re
from pathlib import Path

from ...errors import InvalidRequest, NotFound

FILES = ("model.pt", "model.onnx", "model.pt2")
SAMPLES = ("samples.npy", "samples.npz")
MANIFEST, LABELS, VERSIONS = "model.toml", "labels.txt", "versions.toml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # of a model, a version or a label
NAME_RULE = "1 to 128 letters, digits, '.', '_' and '-', beginning with a letter or digit"


def plain(part: str) -> bool:
    """Whether a part of a path is neither hidden, nor `..`, nor anything but a name."""
    return bool(part) and not part.startswith(".") and ":" not in part


def inside(root: Path, path: str) -> Path:
    """`root/path`, unless a link in it leads out of the repository.

    Raises:
        InvalidRequest: the path leads out.
        NotFound: its links have no end.
    """
    place = root / path
    try:
        real, base = place.resolve(), root.resolve()
    except (OSError, RuntimeError):
        raise NotFound(f"the model repository has no model {path!r}") from None
    if not real.is_relative_to(base):
        raise InvalidRequest.field("path", f"{path!r} leads out of the model repository")
    return place


def version_folders(folder: Path) -> list[Path]:
    """The version folders that hold a model, oldest first by natural order (9 before 10)."""
    found = [item for item in folder.iterdir() if plain(item.name) and model_files(item)]
    return sorted(found, key=lambda item: natural(item.name))


def model_files(folder: Path) -> list[Path]:
    """The model files in a version's folder."""
    return [folder / file for file in FILES if (folder / file).is_file()]


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sorting key by which 9 comes before 10, and words before numbers."""
    return [
        (1, int(part), part) if part.isdecimal() else (0, 0, part)
        for part in re.split(r"(\d+)", text)
        if part
    ]


def read_text(root: Path, place: Path, name: str, limit: int) -> str | None:
    """The text of a file of a model, without a byte order mark; None where there is no such file.

    Args:
        root: the repository's folder.
        place: the file, below `root`.
        name: the model's name, for messages.
        limit: most bytes.

    Raises:
        InvalidRequest: it leads out of the repository, is too large or is no UTF-8 text.
    """
    if not place.is_file():
        return None
    inside(root, place.relative_to(root).as_posix())
    field, what = place.stem.replace("model", "manifest"), f"the {place.name} of {name!r}"
    try:
        if place.stat().st_size > limit:
            raise InvalidRequest.field(field, f"{what} is over {limit >> 20} MiB")
        return place.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise InvalidRequest.field(field, f"{what} cannot be read as UTF-8 text") from None
