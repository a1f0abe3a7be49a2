"""A graph, an archive or a runtime into a `Classifier`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import InvalidRequest, ModelRejected
from .abilities import layers_of, missing_capabilities
from .batching import InGroups, all_rows_at_once
from .classifier import Capability, Classifier
from .determinism import draws_of
from .inputs import ResolvedInput
from .logits import (
    choose_output,
    head,
    keep_output,
    leaves,
    recover_logits,
    told_by_values,
    width,
)
from .lowered import Lowered, Unlowerable
from .manifest import OutputKind, OutputSpec
from .network import ClassifierModule
from .packing import Packing
from .precision import to_single
from .sources import brief
from .verification import agree, difference, float32_noise

NO_BOUNDS = (
    "the manifest does not state bounds; give inputs[0].bounds to use epsilon and image bounds"
)
_NO_SHARED_BOUNDS = (
    "several inputs have bounds only where all are numbers with the same inputs[i].bounds; tokens, "
    "and masks and lengths that are carried along, have none"
)
_NO_INTEGER_BOUNDS = "inputs of integers, such as tokens, and their embeddings have no bounds"
_DECISIONS = (
    "The file gives the winning class alone: its logit is 30 and all others are 0, so "
    "probabilities and margins say nothing more."
)


@dataclass
class Body:
    """A network up to its logits, in one of the three forms.

    Args:
        module: from inputs `(N, *shape)` in the file's units to values that `head` understands.
        head: from those to logits `(N, K)`.
        classes: K; numbers in a row of values.
        source: what the logits were recovered from; see `ModelInfo.logits_from`.
        output_name: the chosen output, as the file names it.
        form: `graph`, `archive` or `runtime`.
        reason: why it has that form, or runs in groups; empty for an ordinary graph.
        index: position of the chosen output.
        layers: layer name -> node name.
        notes: one sentence each.
        mixes_rows: the file's own execution is to be compared one row at a time.
        precision: as `Lowered` has it.
        unsteady: why the same input may get another answer; empty where it gets the same.
    """

    module: nn.Module
    head: nn.Module
    classes: int
    source: str
    output_name: str
    form: str = "graph"
    reason: str = ""
    index: int = 0
    layers: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mixes_rows: bool = False
    precision: torch.dtype | None = None
    unsteady: str = ""

    @property
    def at_once(self) -> int | None:
        """Rows that the file's own execution takes at a time; None where that does not matter."""
        if self.mixes_rows:
            return 1
        return self.module.size if isinstance(self.module, InGroups) else None


class Chosen(nn.Module):
    """One output of a module, with its inputs and outputs cast."""

    def __init__(
        self, body: nn.Module, index: int, inside: torch.dtype, outside: torch.dtype
    ) -> None:
        super().__init__()
        self.body, self.index, self.inside, self.outside = body, index, inside, outside

    def forward(self, x: Tensor) -> Tensor:
        outputs: Any = self.body(x.to(self.inside))
        if not isinstance(outputs, Tensor):
            outputs = leaves(outputs)[self.index][1]
        values: Tensor = outputs.to(self.outside)
        return values


def from_graph(lowered: Lowered, resolved: ResolvedInput, output: OutputSpec) -> Body:
    """The body of a lowered file, cut to its logits.

    Raises:
        InvalidRequest: the manifest must say which output holds the classes.
        ModelRejected: the chosen output is no classifier's.
        Unlowerable: the graph does not run.
    """
    graph = lowered.graph.eval().requires_grad_(False)
    halves = to_single(graph)
    notes = [*lowered.notes, *halves]
    probes = resolved.normalise()(resolved.probes()[0])
    example, outputs = _example(graph, probes, resolved.fixed_batch)
    named = leaves(outputs, lowered.output_names)
    index = choose_output(named, output, len(example))
    nodes = leaves(graph.graph.output_node().args[0], lowered.output_names)
    keep_output(graph, nodes[index][1])
    recovered = recover_logits(graph, example, output.kind)
    body = _finish(
        graph,
        probes,
        example,
        recovered.source,
        named[index][0],
        output,
        integral=_is_integral(graph, example),
        may_mix_rows=lowered.row_by_row,
    )
    body.index, body.mixes_rows = index, lowered.mixes_rows
    body.unsteady = draws_of(graph)
    body.precision = lowered.precision or (torch.float16 if halves else None)
    kept = {node.name for node in graph.graph.nodes}
    body.layers = {name: node for name, node in lowered.layers.items() if node in kept}
    body.notes = [*notes, *recovered.notes, *body.notes]
    return body


def from_module(
    module: nn.Module,
    resolved: ResolvedInput,
    output: OutputSpec,
    *,
    form: str,
    reason: str,
    output_names: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    may_mix_rows: bool = False,
) -> Body:
    """The body of a file that runs as it is.

    Args:
        module: from `(N, *shape)` of `dtype` to the file's outputs.
        resolved: the input.
        output: the manifest's word.
        form: `archive` or `runtime`.
        reason: why it has no graph.
        output_names: the file's names of its outputs.
        dtype: that the file computes in.
        may_mix_rows: it has control flow, which a batch decides together, so that rows must run
            one at a time whatever trials show.

    Raises:
        InvalidRequest, ModelRejected: as `from_graph`.
    """
    probes = resolved.normalise()(resolved.probes()[0])
    whole = _Cast(module, dtype)
    example, outputs = _example(whole, probes, resolved.fixed_batch)
    named = leaves(outputs, output_names)
    index = choose_output(named, output, len(example))
    name, integral = named[index][0], not named[index][1].is_floating_point()
    chosen = Chosen(module, index, dtype, resolved.dtype)
    body = _finish(
        chosen,
        probes,
        example,
        "logits",
        name,
        output,
        integral=integral,
        may_mix_rows=may_mix_rows,
    )
    body.form, body.index, body.reason = form, index, f"{_sentence(reason)} {body.reason}".strip()
    return body


def _is_integral(graph: fx.GraphModule, example: Tensor) -> bool:
    with torch.no_grad():
        values: Tensor = graph(example)
    return not values.is_floating_point()


def _sentence(text: str) -> str:
    return f"{text[:-1] if text.endswith('.') else text}."


class _Cast(nn.Module):
    def __init__(self, body: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.body, self.dtype = body, dtype

    def forward(self, x: Tensor) -> Any:
        return self.body(x.to(self.dtype))


def _example(module: nn.Module, probes: Tensor, fixed: int | None) -> tuple[Tensor, Any]:
    """The fewest rows that a module takes, and its outputs."""
    failure: Exception = Unlowerable("it takes no rows")
    for rows in dict.fromkeys((1, fixed or 2, 2)):
        example = probes[torch.arange(rows) % len(probes)]
        try:
            with torch.no_grad():
                return example, module.forward(example)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            failure = error
    raise Unlowerable(f"it does not run ({brief(failure)})") from failure


def _finish(
    module: nn.Module,
    probes: Tensor,
    example: Tensor,
    source: str,
    name: str,
    output: OutputSpec,
    *,
    integral: bool,
    may_mix_rows: bool = False,
) -> Body:
    with torch.no_grad():
        count = width(module(example), len(example), output.kind)
    if count is None:
        raise ModelRejected(f"the output {name!r} gives no single list of scores per row")
    if may_mix_rows and len(example) == 1:
        module, reason = _told(InGroups(module, 1), probes, "a row's values may depend on all rows")
    else:
        module, reason = _grouped(module, probes, len(example), count, output.kind)
    kind, classes = output.kind, count
    if integral and kind is None:
        kind = OutputKind.CLASSES
    with torch.no_grad():
        values: Tensor = module(probes)
        shaped = all(  # a squeeze drops the batch axis of a single row
            module(some).shape == (len(some), count) for some in (probes, probes[:1])
        )
    notes = _not_finite(values.reshape(-1, count))
    if source == "logits" and kind is None:
        source, note = told_by_values(values.reshape(-1, count))
        notes += [note] if note else []
    elif source == "logits" and kind is not None:
        source = kind.value
    if source == "classes":
        classes = _classes(output, count, name)
        notes += [_DECISIONS]
    return Body(
        module=module,
        head=head(count, source, shaped=shaped, classes=classes),
        classes=classes if source == "values" else max(classes, 2),
        source=source,
        output_name=name,
        reason=reason,
        notes=notes,
    )


def _not_finite(values: Tensor) -> list[str]:
    broken = int((~values.isfinite()).any(1).sum())
    if not broken:
        return []
    return [
        f"{broken} of the {len(values)} inputs tried at loading gave NaN or infinite values; check "
        "the bounds and the weights."
    ]


def _classes(output: OutputSpec, count: int, name: str) -> int:
    """K of a file whose output is the winner's index."""
    if count != 1:
        raise ModelRejected(f"the output {name!r} holds several class indices per row")
    if output.classes is None:
        raise InvalidRequest.field(
            "manifest.labels",
            f"the output {name!r} holds class indices; give labels, or output.classes, so that the "
            "number of classes is known",
        )
    return output.classes


def _grouped(
    module: nn.Module, probes: Tensor, rows: int, count: int, kind: OutputKind | None
) -> tuple[nn.Module, str]:
    """The module if it takes any batch row by row, else in groups of `rows`, and why."""
    plural = "1 row" if rows == 1 else f"{rows} rows"
    with torch.no_grad():
        try:
            together = module.forward(probes)  # called as a module, a graph prints its errors
            fits = width(together, len(probes), kind) == count
            repeated = bool(fits and torch.equal(together, module(probes)))
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
            fits = repeated = False
        if fits and not repeated and not torch.isnan(together).any():
            return module, ""  # random: rows cannot be compared
        grouped = InGroups(module, rows)
        alone = grouped(probes)
        unmixed = fits and agree(
            difference(together.reshape(-1), alone.reshape(-1)),
            together.dtype,
            lambda: float32_noise(module, probes),
        )
        if unmixed and rows == 1:
            return module, ""
        moved = grouped(probes.roll(1, 0)).roll(-1, 0)  # every row beside another one
        if rows > 1 and not agree(
            difference(moved, alone), alone.dtype, lambda: float32_noise(grouped, probes)
        ):
            raise ModelRejected(
                f"the file takes only {plural} at a time, and its rows influence each other, so "
                "no row could be explained by itself"
            )
    why = "its rows influence each other" if fits else "the file takes no other batch size"
    why = "the file takes no single row" if unmixed else why
    return _told(grouped, probes, why)


def _told(grouped: InGroups, probes: Tensor, why: str) -> tuple[nn.Module, str]:
    """The form that runs a file in groups of rows, and that it does."""
    form = all_rows_at_once(grouped, probes)
    plural = "1 row" if grouped.size == 1 else f"{grouped.size} rows"
    told = f"It runs {plural} at a time, because {why}."
    if form is grouped:
        return form, told
    return form, f"{told} `torch.vmap` runs these single rows at once, with the same results."


def assemble(
    name: str,
    body: Body,
    resolved: ResolvedInput,
    *,
    labels: tuple[str, ...] | None = None,
    sha256: str = "",
    other: Tensor | None = None,
    encoder: nn.Module | None = None,
    packing: Packing | None = None,
) -> Classifier:
    """The classifier of a body on the CPU, with its layers and capabilities, parameters frozen.

    Args:
        name: the name it is served under.
        body: on the CPU.
        resolved: the input.
        labels: names of the K classes.
        sha256: of the file.
        other: rows of another size, where sizes are free.
        encoder: see `Classifier`.
        packing: see `Classifier`.
    """
    module = ClassifierModule(resolved.normalise(), body.module, body.head)
    module.eval().requires_grad_(False)
    x = resolved.probes()[1]
    missing = missing_capabilities(module, body, x)
    layers = {} if Capability.LAYERS in missing else layers_of(module, body, x, other)
    if resolved.bounds is None:
        alone = NO_BOUNDS if encoder is None else _NO_INTEGER_BOUNDS
        missing[Capability.BOUNDS] = alone if packing is None else _NO_SHARED_BOUNDS
    return Classifier(
        name,
        module,
        input_shape=resolved.shape,
        classes=body.classes,
        capabilities=frozenset(Capability) - missing.keys(),
        lacking=missing,
        bounds=resolved.bounds,
        mean=resolved.mean,
        layers=layers,
        input_layout=resolved.layout,
        labels=labels,
        sha256=sha256,
        dtype=resolved.dtype,
        input_sizes=resolved.sizes,
        encoder=encoder,
        packing=packing,
        carried=None if packing is None else resolved.probes()[0][2:3],  # of the longest sequence
    )
