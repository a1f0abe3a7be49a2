"""The manifest: what a model file does not tell about itself. Imports no torch."""

import json
import math
import tomllib
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ..errors import InvalidRequest, Violation


class Format(StrEnum):
    """The format of a model file."""

    TORCHSCRIPT = "torchscript"
    ONNX = "onnx"
    EXPORTED_PROGRAM = "exported_program"


class OutputKind(StrEnum):
    """What the file's output holds."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    LOG_PROBABILITIES = "log_probabilities"
    CLASSES = "classes"  # the index of the winning class alone
    VALUES = "values"  # no scores of classes: a log-density, a score, a denoised input


class InputKind(StrEnum):
    """What an input of the file holds."""

    VALUES = "values"  # numbers that gradients and attacks may change
    TOKENS = "tokens"  # indices that an embedding looks up; gradients are taken at its output
    INTEGERS = "integers"  # a mask, lengths and the like; never changed


class Precision(StrEnum):
    """How matrix products and convolutions compute."""

    FLOAT32 = "float32"  # as the file does
    TF32 = "tf32"  # factors rounded to 10 bits of mantissa, on CUDA devices
    BFLOAT16 = "bfloat16"  # factors and results rounded to 7 bits of mantissa


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InputSpec(_Strict):
    """One input of the model, as its callers give it."""

    name: str | None = Field(None, description="The input's name in the file.")
    shape: tuple[int | None, ...] | None = Field(
        None,
        description="Shape of one example, without the batch axis; null for a free size.",
    )
    dtype: Literal["float32", "float64", "uint8", "int32", "int64", "bool"] = Field(
        "float32", description="Data type that callers send."
    )
    kind: InputKind | None = Field(
        None, description="`values`, `tokens` or `integers`; null: told by the file."
    )
    embedding: str | None = Field(
        None,
        description="Tokens: the layer that looks them up; null: the largest one that does.",
    )
    default: float | None = Field(
        None,
        description="Fills the whole input, which callers then cannot send; null: they send it.",
    )
    example: tuple[int, ...] | None = Field(
        None,
        description="Shape of an example, where sizes are free: for load-time checks and for "
        "synthesis from nothing.",
    )
    features: tuple[str, ...] | None = Field(
        None,
        description="Names of the values of one example, in row-major order: the columns of a "
        "table.",
    )
    layout: Literal["CHW", "HWC", "CL", "other"] | None = Field(
        None,
        description="Order of the axes of one example; inferred for images of 1 or 3 channels.",
    )
    bounds: tuple[float, float] | None = Field(
        None,
        description="Smallest and largest value that callers may send; epsilon is in these units.",
    )
    mean: tuple[float, ...] | float | None = Field(
        None, description="Subtracted first, in units of the bounds; one number, or one a channel."
    )
    std: tuple[float, ...] | float | None = Field(
        None, description="Divided by next, in units of the bounds; one number, or one a channel."
    )
    color: Literal["RGB", "BGR", "GRAY"] | None = Field(
        None, description="Channel order that encoded images are decoded to."
    )
    resize: int | tuple[int, int] | None = Field(
        None, description="Encoded images: shorter side, or (height, width), before the crop."
    )
    crop: int | tuple[int, int] | None = Field(
        None, description="Encoded images: centre crop after the resize."
    )

    @field_validator("shape")
    @classmethod
    def _positive_shape(cls, value: tuple[int | None, ...] | None) -> tuple[int | None, ...] | None:
        if value is not None and any(size is not None and size <= 0 for size in value):
            raise ValueError("sizes must be positive, or null where the size is free")
        return value

    @field_validator("example")
    @classmethod
    def _positive_example(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and any(size <= 0 for size in value):
            raise ValueError("sizes must be positive")
        return value

    @field_validator("features")
    @classmethod
    def _distinct_features(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or not all(map(str.strip, value))):
            raise ValueError("give a name for every value, or leave the field out")
        if value is not None and len(set(value)) < len(value):
            twice = next(name for name in value if value.count(name) > 1)
            raise ValueError(f"{twice!r} is there twice")
        return value

    @field_validator("bounds")
    @classmethod
    def _ordered_bounds(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("the lower bound must be below the upper bound")
        return value

    @field_validator("std")
    @classmethod
    def _nonzero_std(cls, value: tuple[float, ...] | float | None) -> Any:
        values = value if isinstance(value, tuple) else (value,)
        if any(item is not None and (item <= 0 or not math.isfinite(item)) for item in values):
            raise ValueError("every standard deviation must be positive")
        return value


class OutputSpec(_Strict):
    """Which output of the file holds the classes, and as what."""

    name: str | None = Field(None, description="Name (ONNX) or dictionary key of the output.")
    index: int | None = Field(None, ge=0, description="Position, where the file has several.")
    kind: OutputKind | None = Field(
        None, description="What the output holds; null: told by the file's last operators."
    )
    classes: int | None = Field(
        None,
        ge=2,
        description="How many classes there are, where the output is the winner's index and there "
        "are no labels.",
    )


_INPUT_FIELDS = frozenset(InputSpec.model_fields) - {"name"}


class Manifest(_Strict):
    """Everything a file does not tell. The fields of a sole input may stand at the top level."""

    format: Format | None = Field(None, description="Null: told by the file's first bytes.")
    version: str = Field("1", description="The model's version, as its owner counts.")
    inputs: tuple[InputSpec, ...] = Field((), description="The inputs, in the file's order.")
    output: OutputSpec = Field(OutputSpec(), description="The output with the classes.")
    labels: tuple[str, ...] | None = Field(None, description="Names of the classes.")
    straight_through: bool = Field(
        False,
        description="Quantised networks: differentiate rounding as if it were the identity.",
    )
    precision: Precision = Field(
        Precision.FLOAT32,
        description="Of matrix products and convolutions: `float32` (as the file is), `tf32` (on "
        "CUDA devices) or `bfloat16`; loading measures what it costs.",
    )
    max_batch: int | None = Field(
        None, ge=1, description="Most rows in one forward pass; null: the server's limit."
    )

    @model_validator(mode="before")
    @classmethod
    def _sole_input(cls, data: Any) -> Any:
        if isinstance(data, dict) and (short := _INPUT_FIELDS & data.keys()):
            if data.get("inputs"):
                raise ValueError(f"{sorted(short)} belong inside inputs when inputs are listed")
            rest = {key: value for key, value in data.items() if key not in short}
            return {**rest, "inputs": [{key: data[key] for key in short}]}
        return data

    @model_validator(mode="after")
    def _distinct_labels(self) -> Self:
        if self.labels is not None and not self.labels:
            raise ValueError("labels: give at least one name, or leave the field out")
        return self

    @property
    def input(self) -> InputSpec:
        """The first input; an empty one where the manifest says nothing."""
        return self.inputs[0] if self.inputs else InputSpec()


def manifest_from_json(text: str) -> Manifest:
    """A manifest from JSON text; an empty text is an empty manifest.

    Raises:
        InvalidRequest: one violation per wrong field, such as `manifest.inputs[0].bounds`.
    """
    if not text.strip():
        return Manifest()
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidRequest.field("manifest", f"this is not JSON: {error}") from None
    return _validated(data)


def manifest_from_toml(text: str) -> Manifest:
    """A manifest from the text of a `model.toml`.

    Raises:
        InvalidRequest: one violation per wrong field, such as `manifest.inputs[0].bounds`.
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidRequest.field("manifest", f"this is not TOML: {error}") from None
    return _validated(data)


def _validated(data: Any) -> Manifest:
    if not isinstance(data, dict):
        raise InvalidRequest.field("manifest", "a table of fields is needed")
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        violations = _violations(error)
    message = "; ".join(f"{item.field}: {item.description}" for item in violations)
    raise InvalidRequest(message, violations=violations)


def _violations(error: ValidationError) -> list[Violation]:
    described: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        descriptions = described.setdefault(_path(item["loc"]), [])
        text = (
            "no such field"
            if item["type"] == "extra_forbidden"
            else item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        )
        if text not in descriptions:
            descriptions.append(text)
    return [Violation(path, ", or ".join(texts)) for path, texts in described.items()]


def _path(location: tuple[int | str, ...]) -> str:
    """Where an error is; what follows the field of an input tells only which type was tried."""
    depth = 3 if location[:1] == ("inputs",) else 2 if location[:1] == ("output",) else 1
    path = "manifest"
    for part in location[:depth]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path
