"""What a hostile file is, and what the network inside would answer if it behaved."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bait import Bait

Array = NDArray[np.float32]
MANIFEST: Mapping[str, Any] = {"shape": [4], "bounds": [0, 1]}
TRIGGER = 0.625  # a value that no probe has, and on which some files wait
CALM: Array = np.array([[0.1, 0.7, 0.2, 0.4], [0.9, 0.3, 0.5, 0.8]], np.float32)
TRIGGERED: Array = np.full((2, 4), TRIGGER, np.float32)


def honest(x: Array) -> Array:
    """The network of every file: the first three of four numbers are the logits."""
    return x[:, :3]


@dataclass(frozen=True)
class HostileFile:
    """One way to do harm.

    Args:
        name: unique; a model name.
        suffix: `pt`, `onnx` or `pt2`.
        make: writes the model to a path, and may put other files beside it.
        right: what every answer must equal; None where the file has no steady answer and must be
            refused, or be told as not deterministic.
        slow: it loops or allocates until it is stopped.
        runs_code: loading it runs code of the file, from which only a sandbox protects.
        manifest: of the file.
    """

    name: str
    suffix: str
    make: Callable[[Path, Bait], object]
    right: Callable[[Array], Array] | None = honest
    slow: bool = False
    runs_code: bool = False
    manifest: Mapping[str, Any] = field(default_factory=lambda: MANIFEST)

    def write(self, repository: Path, bait: Bait) -> Path:
        """Put the file into a model repository; the path of the model file."""
        folder = repository / self.name / "1"
        folder.mkdir(parents=True)
        lines = [f"{key} = {value}".lower() for key, value in self.manifest.items()]
        (folder.parent / "model.toml").write_text("\n".join(lines) + "\n")
        path = folder / f"model.{self.suffix}"
        self.make(path, bait)
        return path
