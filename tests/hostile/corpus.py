"""Every hostile file.

    python -m tests.hostile.corpus DIR

writes them all into the model repository DIR/repository, around the secret in DIR/bait.
"""

import sys
from pathlib import Path

from . import (
    exported_files,
    foreign_files,
    onnx_external,
    onnx_files,
    torchscript_code,
    torchscript_files,
)
from .bait import Bait
from .kinds import HostileFile


def files() -> dict[str, HostileFile]:
    """All of them by name."""
    kinds = (
        torchscript_code,
        torchscript_files,
        onnx_external,
        onnx_files,
        exported_files,
        foreign_files,
    )
    found = [item for kind in kinds for item in kind.files()]
    by_name = {item.name: item for item in found}
    if len(by_name) != len(found):
        raise ValueError("two hostile files have one name")
    return by_name


def write(folder: Path) -> dict[str, Path]:
    """Write them all below a folder; the model files by name."""
    bait = Bait(folder / "bait")
    bait.lay()
    return {name: item.write(folder / "repository", bait) for name, item in files().items()}


if __name__ == "__main__":
    for name, path in write(Path(sys.argv[1]).absolute()).items():
        print(f"{path.stat().st_size:12} {name}")
