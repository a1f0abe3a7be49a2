"""What is known of models and plugins: plain values, which `api` has too."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.manifest import Manifest


@dataclass(frozen=True)
class LayerInfo:
    """A layer's name, kind and row shape."""

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class InputInfo:
    """An input that callers send.

    Args:
        name: the file's.
        kind: `values`, `tokens` (looked up in an embedding) or `integers` (a mask, lengths).
        shape: of one row; -1 where a size is free.
        dtype: `float32`, `float64` or `int64`.
        layout: `CHW`, `HWC`, `CL` or `other`.
        bounds: smallest and largest value, or None.
        limit: tokens lie in [0, limit); None where it is not known.
        integers: whether callers may send integers.
        features: names of the values of one row, or none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = "other"
    bounds: tuple[float, float] | None = None
    limit: int | None = None
    integers: bool = False
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """How a loaded model was checked against its file.

    Args:
        reference: what executed the original (`torch.jit`, `onnxruntime`, ...).
        max_difference: largest |ours - reference| over all logits checked.
        relative_difference: the same over the largest |reference|.
        batch_sizes: which were tried.
        inputs: how many rows in all.
    """

    reference: str
    max_difference: float
    relative_difference: float
    batch_sizes: tuple[int, ...]
    inputs: int


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a loaded model; `form` is `graph`, `archive` or `runtime`.

    `inputs` are what callers send, and `input_*` describe the first of them; `explained_shape` is
    the row shape of what plugins explain and change: embeddings for tokens, all values of several
    inputs in one axis. Sizes are -1 where they are free. `files` are the names of the files beside
    its own that it needs.
    """

    name: str
    version: str
    format: str
    form: str
    form_reason: str
    sha256: str
    size: int
    device: str
    precision: str
    input_name: str
    output_name: str
    input_shape: tuple[int, ...]
    input_dtype: str
    input_layout: str
    bounds: tuple[float, float] | None
    classes: int
    labels: tuple[str, ...]
    logits_from: str  # `logits`, `softmax`, `log_softmax`, `sigmoid`, `probabilities`, ...
    layers: tuple[LayerInfo, ...]
    capabilities: frozenset[str]
    lacking: Mapping[str, str]
    verification: Verification
    notes: tuple[str, ...]
    manifest: Manifest
    max_batch: int
    inputs: tuple[InputInfo, ...] = ()
    explained_shape: tuple[int, ...] = ()
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredModel:
    """Copies of a model's files, from which `Worker.load` makes the same model again.

    Args:
        path: of the model's file.
        manifest: with which it was loaded.
        sha256: of the file.
        samples: real inputs that it was verified with, or None.
    """

    path: Path
    manifest: Manifest
    sha256: str
    samples: Path | None = None


@dataclass(frozen=True)
class ResultField:
    """A field of a plugin's result; `role` is a value of `interpret_server.plugin.Role`."""

    name: str
    role: str
    description: str


@dataclass(frozen=True)
class AuxInfo:
    """An auxiliary tensor that a plugin accepts."""

    name: str
    description: str
    like_input: bool
    required: bool


@dataclass(frozen=True)
class ModelRoleInfo:
    """A second model that a request may name; see `interpret_server.plugin.ModelRole`."""

    name: str
    description: str
    requires: frozenset[str]
    required: bool
    same_inputs: bool
    output: str


@dataclass(frozen=True)
class PluginInfo:
    """What is known of a plugin."""

    name: str
    kind: str
    api: int
    version: str
    distribution: str
    summary: str  # first line of the docstring
    description: str  # the whole docstring
    requires: frozenset[str]
    rows: str
    inputs: str
    target_kinds: frozenset[str]
    schema: Mapping[str, Any]
    fields: tuple[ResultField, ...]
    tensors: tuple[AuxInfo, ...]
    models: tuple[ModelRoleInfo, ...] = ()
