"""A model file and its manifest into a verified classifier."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from ..engine.api import InputInfo, LayerInfo, ModelInfo, Verification
from ..errors import InvalidRequest, ModelRejected
from .answers import FileAnswers
from .assembly import Body, assemble, from_graph, from_module
from .batching import InGroups
from .classifier import Capability, Classifier
from .determinism import draws, repeats, repeats_surely
from .execution import Execution
from .formats import digest, identify
from .inputs import resolve_inputs
from .lowered import Lowered, Stateful, Unlowerable
from .manifest import Format, InputKind, Manifest, OutputSpec, Precision
from .mismatch import first_difference
from .original import InputSet, Original
from .products import PRODUCTS
from .reduced import check_precision, reduce_precision
from .rows import Rows, graph_rows, plain_rows
from .samples import read_samples
from .sources import Source, brief, open_source
from .verification import difference, float32_line_noise, verify

_log = logging.getLogger(__name__)
_RANDOM = (
    "the file's own execution gives another answer each time for the same input (a random or "
    "stateful operator)"
)
_NOTHING = Verification("none", 0.0, 0.0, (), 0)
_DEVICE_TOLERANCE = 2e-2  # another device computes convolutions by other algorithms


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
    execution: Execution = Execution.AUTO,
    samples: Path | None = None,
) -> LoadedModel:
    """Load a model file, turn it into a classifier and compare it with its own execution.

    Args:
        name: the name it is served under.
        path: a TorchScript archive or an ONNX file. Loading an archive runs code of the file.
        manifest: what the file does not tell about itself.
        device: where the classifier is to run; it is verified on the CPU first.
        default_max_batch: most rows in one forward pass, where the manifest does not say.
        execution: how much the form that runs may differ from the canonical graph.
        samples: real inputs to verify it with as well; see `samples.read_samples`.

    Raises:
        NotFound: there is no such file.
        InvalidModel: the file is corrupt, or not of the manifest's format.
        InvalidRequest: a field of the manifest is missing or contradicts the file.
        ModelRejected: the file is sound, but cannot be served or differs from its own execution.
    """
    try:
        return _load(name, path, manifest, device, default_max_batch, execution, samples)
    except MemoryError as error:
        raise ModelRejected("loading the file takes more memory than there is") from error
    except RuntimeError as error:  # of torch, where the file's program fails after its first trial
        _log.warning("the program of %s failed", name, exc_info=True)
        raise ModelRejected(f"the file's program fails ({brief(error)})") from error


def _load(
    name: str,
    path: Path,
    manifest: Manifest,
    device: torch.device,
    default_max_batch: int,
    execution: Execution,
    samples: Path | None,
) -> LoadedModel:
    file_format = identify(path, manifest.format)
    sha256, size = digest(path)
    output = manifest.output
    source = open_source(file_format, path, straight_through=manifest.straight_through)
    named = manifest.labels or source.labels(output.name or "")
    if output.classes is None and named is not None and len(named) > 1:
        output = output.model_copy(update={"classes": len(named)})
    original = Original(source, resolve_inputs(manifest, source.inputs, source.dtype))
    body, rows, lowered = _body(source, output, original)
    if body.source == "values" and body.classes > 1 and None in rows.x.sizes:
        raise InvalidRequest.field(
            "manifest.inputs[0].shape", "an output of values needs an input of fixed sizes"
        )
    if manifest.labels is not None and len(manifest.labels) != body.classes:
        raise InvalidRequest.field(
            "manifest.labels",
            f"{len(manifest.labels)} labels for {body.classes} classes",
        )
    labels = manifest.labels or _telling(source.labels(body.output_name), body.classes)
    other = original.another_size(lowered) if rows.x.sizes else None
    classifier = assemble(
        name,
        body,
        rows.x,
        labels=labels,
        sha256=sha256,
        other=None if other is None else rows.encode(other.probes()[1]),
        encoder=rows.encoder,
        packing=rows.packing,
    )
    classifier.execution = execution
    if source.decides_by_size and lowered is not None and None in classifier.input_sizes:
        to_file, graph = rows.inputs.to_file, lowered
        classifier.guard = lambda raw: source.decided_otherwise(graph, to_file(raw))
    precision, dtypes = (
        manifest.precision,
        {source.dtype, rows.x.dtype, body.precision or source.dtype},
    )
    check_precision(precision, device, body.form, dtypes)
    batches = _batches(rows, other)
    if samples is not None:
        batches += read_samples(samples, rows.inputs, rows.limits)
    verification, notes = _verified(classifier, body, rows, original, lowered, batches)
    if original.module is not None:
        kept = body.form != "graph" and device.type == "cpu"
        classifier.answers = FileAnswers(path, sha256, manifest, original, body, stays_open=kept)
    with PRODUCTS.held(device, Precision.FLOAT32):
        _move(classifier, device, rows.x.probes()[1])
    notes += reduce_precision(classifier, precision, [rows.encode(raw) for raw in batches])
    info = _info(
        classifier,
        body,
        rows,
        verification,
        manifest=manifest,
        file_format=file_format,
        size=size,
        files=source.files,
        dtype=source.dtype if body.form == "archive" else rows.x.dtype,
        notes=(
            *source.notes,
            *(note for item in rows.inputs.items for note in item.notes),
            *rows.notes,
            *body.notes,
            *notes,
        ),
        max_batch=manifest.max_batch or default_max_batch,
    )
    return LoadedModel(classifier, info)


def _telling(names: tuple[str, ...] | None, classes: int) -> tuple[str, ...] | None:
    """The file's names of K classes, where they tell more than the position does."""
    counted = tuple(map(str, range(classes)))
    return None if names is None or len(names) != classes or names == counted else names


def _body(
    source: Source, output: OutputSpec, original: Original
) -> tuple[Body, Rows, Lowered | None]:
    try:
        lowered = source.graph(*original.example)
        rows = graph_rows(lowered, original.inputs)
        return from_graph(lowered, rows.x, output), rows, lowered
    except Unlowerable as error:
        reason = brief(error)
        stateful = isinstance(error, Stateful)
    if original.module is None:
        raise ModelRejected(f"the file cannot be turned into a graph: {reason}")
    dtype = torch.float64 if source.dtype is torch.float64 else torch.float32
    rows, module = plain_rows(original.inputs, original.module, dtype)
    try:
        body = from_module(
            module,
            rows.x,
            output,
            form=source.form,
            reason=reason,
            output_names=source.output_names,
            dtype=source.dtype if module is original.module else dtype,
            may_mix_rows=source.has_control_flow(),
        )
    except Unlowerable as error:
        raise ModelRejected(f"the file does not run: {brief(error)}") from error
    state = f"{reason}, and its answers may depend on earlier calls" if stateful else ""
    body.unsteady = state or draws(source.operators())
    return body, rows, None


def _batches(rows: Rows, other: InputSet | None) -> list[Tensor]:
    """Callers' rows to verify a model with, at another size too where there is one."""
    limits = [limit or 2 for limit in rows.limits]
    batches = [*rows.inputs.probes(limits)]
    if other is not None:
        batches.append(other.probes(limits)[1])
    return batches


def _verified(
    classifier: Classifier,
    body: Body,
    rows: Rows,
    original: Original,
    lowered: Lowered | None,
    batches: Sequence[Tensor],
) -> tuple[Verification, list[str]]:
    if body.unsteady:
        return _unsteady(classifier, body.unsteady)
    if original.module is None:
        return _NOTHING, []
    at_once = body.at_once
    reference = original.output(body.index, at_once)

    def judged(reference: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Verification:
        return verify(
            lambda raw: classifier(rows.encode(raw)),
            reference,
            batches,
            source=body.source,
            executor=original.source.executor,
            dtype=dtype,
            noise=lambda raw: float32_line_noise(classifier.module, rows.encode(raw), body.source),
            where=lambda: _first_difference(body, rows, original, lowered, batches[0]),
        )

    try:
        if not repeats(reference, batches[1:2]):
            return _unsteady(classifier, _RANDOM)
        verification = judged(reference, body.precision or original.source.precision)
    except ModelRejected as error:
        if not repeats_surely(reference, batches):
            return _unsteady(classifier, _RANDOM)
        try:
            judged(reference, torch.float16)  # nothing but rounding, if coarse
        except ModelRejected:
            raise error from None
        if body.precision is not None or not original.source.doubt():
            raise
        verification = judged(original.output(body.index, at_once), original.source.precision)
    except RuntimeError as error:
        plural = f"{at_once} at a time" if at_once else "of every number"
        raise ModelRejected(f"the file does not run on rows {plural} ({brief(error)})") from error
    return verification, _other_winners(classifier, body, rows, original, at_once, batches)


def _other_winners(
    classifier: Classifier,
    body: Body,
    rows: Rows,
    original: Original,
    at_once: int | None,
    batches: Sequence[Tensor],
) -> list[str]:
    """A note, where an output of the file names other winners than its scores do."""
    index = original.source.winners
    if index is None or index == body.index:
        return []
    named = original.output(index, at_once)
    for batch in batches:
        with torch.no_grad():
            logits, winners = classifier(rows.encode(batch)), named(batch)
        best = logits.topk(2).values
        sure = best[:, 0] - best[:, 1] > 1e-3 * best[:, 0].abs()
        if (sure & (logits.argmax(1) != winners[:, 0])).any():
            return [
                f"The file's output {original.source.output_names[index]!r} names other winners "
                f"than the largest of {body.output_name!r}, which is what is served."
            ]
    return []


def _unsteady(classifier: Classifier, why: str) -> tuple[Verification, list[str]]:
    classifier.withhold(Capability.DETERMINISTIC, why)
    return _NOTHING, [f"The network was not verified, since {why}."]


def _first_difference(
    body: Body, rows: Rows, original: Original, lowered: Lowered | None, raw: Tensor
) -> str | None:
    at_once = body.module.size if isinstance(body.module, InGroups) else original.rows
    raw = raw[torch.arange(at_once or len(raw)) % len(raw)]
    graph = body.module.body if isinstance(body.module, InGroups) else body.module
    if lowered is None or not isinstance(graph, fx.GraphModule):
        return None
    examples = original.inputs.to_file(raw)
    return first_difference(
        graph,
        rows.x.normalise()(rows.encode(raw)),
        body.layers,
        lambda layers: original.source.values(lowered, examples, layers),
        original.source.module_like,
    )


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
    rows: Rows,
    verification: Verification,
    *,
    manifest: Manifest,
    file_format: Format,
    size: int,
    files: tuple[str, ...],
    dtype: torch.dtype,
    notes: tuple[str, ...],
    max_batch: int,
) -> ModelInfo:
    layers = (
        LayerInfo(item.name, item.kind, _wire(item.sizes or item.shape))
        for item in classifier.layers.values()
    )
    inputs = tuple(
        InputInfo(
            name=item.name,
            kind=str(item.kind or InputKind.VALUES),
            shape=_wire(item.sizes or item.shape),
            dtype=str(item.dtype).removeprefix("torch."),
            layout=item.layout,
            bounds=item.bounds,
            limit=limit or None,
            integers=item.integral or bool(item.sent_integers),
            features=item.features,
        )
        for item, limit in zip(
            rows.inputs.given, rows.limits or (0,) * len(rows.inputs.given), strict=True
        )
    )
    return ModelInfo(
        name=classifier.name,
        version=manifest.version,
        format=file_format.value,
        form=body.form,
        form_reason=body.reason,
        sha256=classifier.sha256,
        size=size,
        device=str(classifier.device),
        precision=str(dtype).removeprefix("torch.")
        if manifest.precision is Precision.FLOAT32
        else manifest.precision.value,
        input_name=inputs[0].name,
        output_name=body.output_name,
        input_shape=inputs[0].shape,
        input_dtype=inputs[0].dtype,
        input_layout=inputs[0].layout,
        bounds=rows.x.bounds,
        classes=body.classes,
        labels=classifier.labels or (),
        logits_from=body.source,
        layers=tuple(layers),
        capabilities=frozenset(item.value for item in classifier.capabilities),
        lacking={item.value: why for item, why in classifier.lacking.items()},
        verification=verification,
        notes=notes,
        manifest=manifest,
        max_batch=max_batch,
        inputs=inputs,
        explained_shape=_wire(classifier.input_sizes),
        files=files,
    )


def _wire(sizes: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(-1 if size is None else size for size in sizes)
