"""A model file and its manifest into a verified classifier."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..engine.api import LayerInfo, ModelInfo, Verification
from ..errors import InvalidRequest, ModelRejected
from .assembly import Body, assemble, brief, from_graph, from_module
from .batching import InGroups
from .classifier import Classifier
from .formats import digest, identify
from .inputs import ResolvedInput, resolve_input
from .logits import leaves
from .lowered import Unlowerable
from .manifest import Format, Manifest
from .sources import Source, open_source
from .verification import difference, float32_noise, verify

_DEVICE_TOLERANCE = 2e-2  # another device may round convolutions to TF32


@dataclass(frozen=True)
class LoadedModel:
    """A classifier and what is known of it."""

    classifier: Classifier
    info: ModelInfo


def load_classifier(
    name: str,
    path: Path,
    manifest: Manifest,
    *,
    device: torch.device,
    default_max_batch: int = 64,
) -> LoadedModel:
    """Load a model file, turn it into a classifier and compare it with its own execution.

    Args:
        name: the name it is served under.
        path: a TorchScript archive or an ONNX file. Loading an archive runs code of the file.
        manifest: what the file does not tell about itself.
        device: where the classifier is to run; it is verified on the CPU first.
        default_max_batch: most rows in one forward pass, where the manifest does not say.

    Raises:
        NotFound: there is no such file.
        InvalidModel: the file is corrupt, or not of the manifest's format.
        InvalidRequest: a field of the manifest is missing or contradicts the file.
        ModelRejected: the file is sound, but cannot be served or differs from its own execution.
    """
    file_format = identify(path, manifest.format)
    sha256, size = digest(path)
    source = open_source(file_format, path)
    resolved = resolve_input(manifest, source.inputs)
    original = _Original(source, resolved)
    body = _body(source, resolved, manifest, original)
    if manifest.labels is not None and len(manifest.labels) != body.classes:
        raise InvalidRequest.field(
            "manifest.labels",
            f"{len(manifest.labels)} labels for {body.classes} classes",
        )
    classifier = assemble(name, body, resolved, labels=manifest.labels, sha256=sha256)
    verification, notes = _verified(classifier, body, resolved, original)
    _move(classifier, device, resolved.probes()[1])
    info = _info(
        classifier,
        body,
        resolved,
        verification,
        manifest=manifest,
        file_format=file_format,
        size=size,
        precision=source.dtype if body.form == "archive" else resolved.dtype,
        notes=(*source.notes, *resolved.notes, *body.notes, *notes),
        max_batch=manifest.max_batch or default_max_batch,
    )
    return LoadedModel(classifier, info)


class _Original:
    """The file's own execution, on any number of rows."""

    def __init__(self, source: Source, resolved: ResolvedInput) -> None:
        self.source, self.module = source, source.original
        self.normalise = resolved.normalise()
        self.probes = self.normalise(resolved.probes()[0]).to(source.dtype)
        self.rows: int | None = None  # the batch size that the file insists on
        self.example = self.probes[3:5]
        if self.module is None:
            return
        self.failure: Exception | None = None
        fixed = resolved.fixed_batch
        for rows in (fixed,) if fixed else (5, 2, 1):
            example = self.probes[torch.arange(rows) % len(self.probes)]
            if not self._runs(example):
                continue
            if rows < 5 or fixed:
                self.rows, self.example = rows, example
            return
        if self._runs(torch.zeros_like(example, dtype=torch.int64)):
            raise ModelRejected(
                "the file takes integers, such as tokens; only floating-point inputs are served"
            )
        raise InvalidRequest.field(
            "manifest.inputs[0].shape",
            f"the file does not run on rows of shape {list(resolved.shape)} "
            f"({brief(self.failure or ModelRejected('it takes no rows'))})",
        ) from self.failure

    def _runs(self, example: Tensor) -> bool:
        assert self.module is not None
        try:
            with torch.no_grad():
                self.module(example)
        except Exception as error:  # whatever a foreign program raises
            self.failure = self.failure or error
            return False
        return True

    def output(self, body: Body) -> Callable[[Tensor], Tensor]:
        """From inputs in the caller's units to the chosen output, `(N, numbers in a row)`."""
        assert self.module is not None
        rows = self.rows or (body.module.size if isinstance(body.module, InGroups) else None)
        chosen: nn.Module = _Leaf(self.module, body.index)
        module = chosen if rows is None else InGroups(chosen, rows)

        def run(x: Tensor) -> Tensor:
            with torch.no_grad():
                values: Tensor = module(self.normalise(x).to(self.source.dtype))
            return values.reshape(len(x), -1)

        return run


class _Leaf(nn.Module):
    def __init__(self, module: nn.Module, index: int) -> None:
        super().__init__()
        self.module, self.index = module, index

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = leaves(self.module(x))[self.index][1]
        return values


def _body(source: Source, resolved: ResolvedInput, manifest: Manifest, original: _Original) -> Body:
    try:
        lowered = source.graph(original.example)
        return from_graph(lowered, resolved, manifest.output)
    except Unlowerable as error:
        reason = brief(error)
    if original.module is None:
        raise ModelRejected(f"the file cannot be turned into a graph: {reason}")
    try:
        return from_module(
            original.module,
            resolved,
            manifest.output,
            form=source.form,
            reason=reason,
            output_names=source.output_names,
            dtype=source.dtype,
            may_mix_rows=source.has_control_flow(),
        )
    except Unlowerable as error:
        raise ModelRejected(f"the file does not run: {brief(error)}") from error


def _verified(
    classifier: Classifier, body: Body, resolved: ResolvedInput, original: _Original
) -> tuple[Verification, list[str]]:
    unverified = Verification("none", 0.0, 0.0, (), 0)
    if original.module is None:
        return unverified, []
    batches = resolved.probes()
    reference = original.output(body)
    if difference(reference(batches[1]), reference(batches[1])).absolute > 0:
        return unverified, [
            "The file's own execution gives another answer each time for the same input (a random "
            "or stateful operator), so the network was not verified."
        ]
    verification = verify(
        classifier,
        reference,
        batches,
        source=body.source,
        executor=original.source.executor,
        dtype=original.source.dtype,
        noise=lambda: float32_noise(classifier.module, batches[0]),
    )
    return verification, []


def _move(classifier: Classifier, device: torch.device, x: Tensor) -> None:
    """To the device, where the classifier must still give the same logits."""
    if device == classifier.device:
        return
    with torch.no_grad():
        expected = classifier(x)
        try:
            found = classifier.to(device)(x.to(device))
        except RuntimeError as error:
            raise ModelRejected(
                f"the network does not run on {device.type} ({brief(error)})"
            ) from error
    measured = difference(found, expected)
    if measured.relative > _DEVICE_TOLERANCE:
        raise ModelRejected(
            f"the network differs between {device.type} and cpu by {measured.absolute:.3g}, "
            f"{measured.relative:.2g} of the largest logit, so it is not served there"
        )


def _info(
    classifier: Classifier,
    body: Body,
    resolved: ResolvedInput,
    verification: Verification,
    *,
    manifest: Manifest,
    file_format: Format,
    size: int,
    precision: torch.dtype,
    notes: tuple[str, ...],
    max_batch: int,
) -> ModelInfo:
    layers = (LayerInfo(item.name, item.kind, item.shape) for item in classifier.layers.values())
    return ModelInfo(
        name=classifier.name,
        version=manifest.version,
        format=file_format.value,
        form=body.form,
        form_reason=body.reason,
        sha256=classifier.sha256,
        size=size,
        device=str(classifier.device),
        precision=str(precision).removeprefix("torch."),
        input_name=resolved.name,
        output_name=body.output_name,
        input_shape=resolved.shape,
        input_dtype=str(resolved.dtype).removeprefix("torch."),
        input_layout=resolved.layout,
        bounds=resolved.bounds,
        classes=body.classes,
        labels=manifest.labels or (),
        logits_from=body.source,
        layers=tuple(layers),
        capabilities=frozenset(item.value for item in classifier.capabilities),
        lacking={item.value: why for item, why in classifier.lacking.items()},
        verification=verification,
        notes=notes,
        manifest=manifest,
        max_batch=max_batch,
    )
