"""Predictions, gradients, activations, files' own answers and decoding, queued as plugins are.

They are not listed among the plugins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from .. import __version__
from ..errors import FailedPrecondition
from ..models.targets import TargetKind
from ..plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Params,
    Plugin,
    logits_before,
    output,
)
from ..registry import Registration


class NoParams(Params):
    """No parameters."""


@dataclass(frozen=True)
class Predicted:
    """What the model answers."""

    logits: Tensor = output("`(N, K)`", like_input=False)
    probabilities: Tensor = output("`(N, K)`, the softmax of the logits.", like_input=False)
    before: Tensor = logits_before()


class Predict(Plugin[NoParams, Predicted]):
    """Logits and probabilities; needs nothing but a forward pass."""

    name: ClassVar[str] = "_predict"
    kind: ClassVar[Kind] = Kind.PRIMITIVE
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset()

    @torch.no_grad()
    def run(self, model: Classifier, batch: Batch, params: NoParams, job: Job) -> Predicted:
        logits = model(batch.inputs)
        return Predicted(logits, logits.softmax(1), logits)


@dataclass(frozen=True)
class VectorJacobian:
    """A vector-Jacobian product."""

    gradient: Tensor = output("`(N, *input_shape)`")
    logits: Tensor = output("`(N, K)`", like_input=False)


class VectorJacobianProduct(Plugin[NoParams, VectorJacobian]):
    """The gradient of `sum(grad_outputs * logits)` by the inputs."""

    name: ClassVar[str] = "_gradient"
    kind: ClassVar[Kind] = Kind.PRIMITIVE
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.GRADIENT})
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset()
    tensors: ClassVar[Mapping[str, AuxTensor]] = MappingProxyType(
        {"grad_outputs": AuxTensor("The cotangent of the logits, `(N, K)`.", False, True)}
    )

    def run(self, model: Classifier, batch: Batch, params: NoParams, job: Job) -> VectorJacobian:
        cotangent = batch.tensors["grad_outputs"]
        if tuple(cotangent.shape[1:]) != (model.classes,):
            raise InvalidRequest.field(
                "tensors.grad_outputs",
                f"the shape is {list(cotangent.shape)}; the logits of {model.name} have "
                f"[rows, {model.classes}]",
            )
        leaf = batch.inputs.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = model(leaf)
            (gradient,) = torch.autograd.grad(
                logits, leaf, cotangent, allow_unused=True, materialize_grads=True
            )
        return VectorJacobian(gradient, logits.detach())


class ActivationsParams(Params):
    """Which layers to read."""

    layers: tuple[str, ...] = Field(min_length=1, description="Names of the layers.")


class Activations(Plugin[ActivationsParams, Mapping[str, Tensor]]):
    """The values of layers, each `(N, *layer_shape)`, by layer name."""

    name: ClassVar[str] = "_activations"
    kind: ClassVar[Kind] = Kind.PRIMITIVE
    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.LAYERS})
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset()

    def check(self, model: Classifier, params: ActivationsParams) -> None:
        for name in params.layers:
            model.layer(name)

    @torch.no_grad()
    def run(
        self, model: Classifier, batch: Batch, params: ActivationsParams, job: Job
    ) -> Mapping[str, Tensor]:
        names = tuple(dict.fromkeys(params.layers))
        return dict(zip(names, model.activations(batch.inputs, names), strict=True))


@dataclass(frozen=True)
class FileAnswered:
    """What a model's file itself answers."""

    inputs: Tensor = output("`(N, *input_shape)`, the rows as plugins see them.")
    scores: Tensor = output("`(N, K)`, the file's; see `models.answers`.", like_input=False)
    classes: Tensor = output("`(N,)`, the file's decisions.", like_input=False)
    logits: Tensor = output("`(N, K)`, of the served form.", like_input=False)


class Original(Plugin[NoParams, FileAnswered]):
    """What the file answers, run by itself, beside what the served form answers.

    It is given the rows as callers send them, on the CPU.
    """

    name: ClassVar[str] = "_original"
    kind: ClassVar[Kind] = Kind.PRIMITIVE
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset()

    def check(self, model: Classifier, params: NoParams) -> None:
        if model.answers is None:
            raise FailedPrecondition(f"model: nothing here runs the file of {model.name} as it is")

    @torch.no_grad()
    def run(self, model: Classifier, batch: Batch, params: NoParams, job: Job) -> FileAnswered:
        assert model.answers is not None
        found = model.answers(batch.inputs)
        inputs = model.encode(batch.inputs)
        logits = model(inputs.to(model.device))
        return FileAnswered(inputs, found.scores, found.classes, logits)


@dataclass(frozen=True)
class Decoded:
    """What rows came to."""

    values: Tensor = output("`(N,)`, how many values each row has.", like_input=False)


class Decode(Plugin[NoParams, Decoded]):
    """Only what is done to the inputs of every call: a refusal says that they cannot be decoded."""

    name: ClassVar[str] = "_decode"
    kind: ClassVar[Kind] = Kind.PRIMITIVE
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset()

    def run(self, model: Classifier, batch: Batch, params: NoParams, job: Job) -> Decoded:
        values = batch.inputs.flatten(1).shape[1]
        return Decoded(torch.full((len(batch),), values, dtype=torch.int64))


def primitives() -> dict[str, Registration]:
    """The engine's own plugins, by name."""
    plugins: tuple[Plugin[Any, Any], ...] = (
        Predict(),
        VectorJacobianProduct(),
        Activations(),
        Original(),
        Decode(),
    )
    return {item.name: Registration(item, "interpret-server", __version__) for item in plugins}
