"""What a server tells of its models and plugins: plain values, no protobuf."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layer:
    """A layer of a model; `shape` is of one row, without the batch axis."""

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Verification:
    """How a served model was compared with its file's own execution.

    Args:
        reference: what executed the file (`torch.jit`, `onnxruntime`, ...).
        max_difference: largest absolute difference of a logit.
        relative_difference: the same over the largest absolute logit.
        batch_sizes: which were tried.
        inputs: rows compared in all.
    """

    reference: str
    max_difference: float
    relative_difference: float
    batch_sizes: tuple[int, ...]
    inputs: int


@dataclass(frozen=True)
class ModelInput:
    """An input that callers send.

    Args:
        name: the file's.
        kind: `values`, `tokens` (indices that an embedding looks up) or `integers`.
        shape: of one row; -1 where a size is free.
        dtype: the element type.
        layout: `CHW`, `HWC`, `CL` or `other`.
        bounds: smallest and largest value, or None where the manifest states none.
        limit: tokens lie in [0, limit); None where it is not known.
        integers: integers are taken, too.
        features: names of the values of one row, in row-major order; empty where the manifest
            states none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    bounds: tuple[float, float] | None
    limit: int | None
    integers: bool
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelInfo:
    """What the server knows of a loaded model.

    Args:
        form: `graph` (lowered), `archive` (the file's own program) or `runtime` (forward only);
            `form_reason` says why.
        inputs: what callers send; `input_*` describe the first of them.
        input_shape: of one row, without the batch axis; -1 where a size is free.
        explained_shape: row shape of what plugins explain and change: embeddings for tokens, all
            values of several inputs in one axis.
        bounds: smallest and largest input value, or None where the manifest states none.
        logits_from: what the logits were recovered from (`logits`, `softmax`, ...).
        lacking: capability -> why the model lacks it.
        manifest: the manifest in force.
        max_batch: most rows of one forward pass.
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
    logits_from: str
    layers: tuple[Layer, ...]
    capabilities: frozenset[str]
    lacking: Mapping[str, str]
    verification: Verification
    notes: tuple[str, ...]
    manifest: Mapping[str, Any]
    max_batch: int
    inputs: tuple[ModelInput, ...] = ()
    explained_shape: tuple[int, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the values of a row of the first input; empty where the manifest states none."""
        return self.inputs[0].features if self.inputs else ()


@dataclass(frozen=True)
class ResultField:
    """A field of a plugin's result.

    Its role is `tensor`, `metric`, `logits_before`, `logits_after`, or `group`: a tensor of any
    shape about all rows of the call.
    """

    name: str
    role: str
    description: str


@dataclass(frozen=True)
class AuxTensor:
    """An auxiliary tensor that a plugin accepts by name, one row per input row."""

    name: str
    description: str
    like_input: bool
    required: bool


@dataclass(frozen=True)
class ModelRole:
    """A second model that a request may name, as `models={name: ...}`.

    Args:
        requires: capabilities that it must have.
        required: a request without it is refused.
        same_inputs: it must take rows as the first model does: shape, type and bounds.
        output: what it must give: `classes`, `number` (for each row), `like_input` or `any`.
    """

    name: str
    description: str
    requires: frozenset[str]
    required: bool
    same_inputs: bool
    output: str


@dataclass(frozen=True)
class PluginInfo:
    """What the server knows of a plugin.

    Args:
        requires: capabilities that a model must have.
        rows: `independent`, `group` or `collection`.
        inputs: `required`, `optional` or `forbidden`.
        target_kinds: kinds of target that it accepts; empty where it uses none.
        schema: JSON Schema of its parameters.
        results: the fields of its result.
        tensors: the auxiliary tensors that a request may bring.
        models: the second models that a request may name.
    """

    name: str
    kind: str
    api: int
    version: str
    distribution: str
    summary: str
    description: str
    requires: frozenset[str]
    rows: str
    inputs: str
    target_kinds: frozenset[str]
    schema: Mapping[str, Any]
    results: tuple[ResultField, ...]
    tensors: tuple[AuxTensor, ...]
    models: tuple[ModelRole, ...] = ()
