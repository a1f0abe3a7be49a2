"""A file's inputs as the one tensor of rows that a classifier takes.

A sole input of numbers is that tensor. Tokens are replaced by their embeddings, where gradients
are taken; several inputs are packed into one flat row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .inputs import ResolvedInput
from .lowered import Lowered, Unlowerable
from .manifest import InputKind
from .original import InputSet, part
from .packing import Packing, Part, Slot, Unpack, Unpacked
from .tokens import Lookup, find_lookup
from .verification import agree, difference


class Encoder(nn.Module):
    """Callers' rows to the classifier's: tokens to embeddings, several inputs to one row.

    Args:
        raw: how callers' inputs are packed; None where they send one.
        encoders: for every value of a row: the position of the input, and what is done to it.
        packing: how those values are packed; None where there is one.
        dtype: of the rows.
    """

    def __init__(
        self,
        raw: Packing | None,
        encoders: Sequence[tuple[int, nn.Module | None]],
        packing: Packing | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.raw, self.packing, self.dtype = raw, packing, dtype
        self.sources = [source for source, _ in encoders]
        self.encoders = nn.ModuleList(item or nn.Identity() for _, item in encoders)

    def pack(self, values: Sequence[Tensor]) -> Tensor:
        """One tensor per input to callers' rows."""
        return values[0] if self.raw is None else self.raw.pack(values, torch.float64)

    @torch.no_grad()
    def forward(self, rows: Tensor) -> Tensor:
        """Callers' rows, on the CPU, to the classifier's `(N, ...)`."""
        given = [rows] if self.raw is None else self.raw.unpack(rows)
        values = []
        for source, encoder in zip(self.sources, self.encoders, strict=True):
            value = given[source]
            plain = isinstance(encoder, nn.Identity)
            values.append(value if plain else encoder(value.round().long()))
        if self.packing is None:
            return values[0].to(self.dtype)
        return self.packing.pack(values, self.dtype)


@dataclass
class Rows:
    """What a classifier's rows are.

    Args:
        x: the rows, as assembly takes an input.
        inputs: as callers send them.
        encoder: from callers' rows to these; None where they are the same.
        packing: of several values in a row, or None.
        limits: for each input that callers send: integers lie in [0, limit); 0 where unknown.
        notes: one sentence each.
    """

    x: ResolvedInput
    inputs: InputSet
    encoder: Encoder | None = None
    packing: Packing | None = None
    limits: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)

    def encode(self, rows: Tensor) -> Tensor:
        """Callers' rows to the classifier's."""
        return rows if self.encoder is None else self.encoder(rows)


def plain_rows(inputs: InputSet, body: nn.Module, dtype: torch.dtype) -> tuple[Rows, nn.Module]:
    """Rows of a file that runs as it is, and the file as a module of them."""
    if _is_plain(inputs):
        return Rows(inputs.given[0], inputs), body
    inputs = InputSet([_kind_of(item) for item in inputs.items], dtype)
    encoder = Encoder(
        inputs.packing, [(i, None) for i in range(len(inputs.given))], inputs.packing, dtype
    )
    rows = _rows(inputs, encoder, [part(item) for item in inputs.given], (), dtype)
    return rows, Unpacked(inputs.to_file, body)


def _kind_of(item: ResolvedInput) -> ResolvedInput:
    if item.dtype.is_floating_point and not item.integral:
        return replace(item, kind=InputKind.VALUES)
    kind = InputKind.TOKENS if item.kind is InputKind.TOKENS else InputKind.INTEGERS
    return replace(item, kind=kind, dtype=torch.int64)


def _is_plain(inputs: InputSet) -> bool:
    (item, *others) = inputs.items
    return not others and item.dtype.is_floating_point and not item.integral


def graph_rows(lowered: Lowered, inputs: InputSet) -> Rows:
    """The rows of a lowered file, whose graph becomes one of that single input, in place.

    Raises:
        InvalidRequest: the manifest names an embedding that is none.
        Unlowerable: the graph has other inputs than the file.
    """
    graph = lowered.graph
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    if len(placeholders) != len(inputs.items):
        raise Unlowerable("its graph takes other inputs than the file")
    stated = {inputs.dtype, *(item.dtype for item in inputs.items)}
    dtype = torch.float64 if torch.float64 in stated else torch.float32
    examples = _examples(inputs, dtype)
    lookups: dict[int, Lookup] = {}
    for item, placeholder in zip(inputs.items, placeholders, strict=True):
        if item.default is None and item.kind in (None, InputKind.TOKENS):
            found = find_lookup(lowered, placeholder, examples, item)
            if found is not None:
                lookups[inputs.given.index(item)] = found
    lookups, limits = _explained(lookups, inputs)
    if not lookups and _is_plain(inputs):
        return Rows(inputs.given[0], inputs)
    return _Builder(lowered, inputs, placeholders, lookups, limits, examples, dtype).build()


def _explained(
    lookups: dict[int, Lookup], inputs: InputSet
) -> tuple[dict[int, Lookup], dict[int, int]]:
    """The lookups that are explained, and the range of every input that is looked up.

    Of several inputs that the manifest does not call tokens, that of the largest table is; the
    others, such as segments, are integers.
    """
    limits = {source: lookup.limit for source, lookup in lookups.items()}
    unsaid = [source for source in lookups if inputs.given[source].kind is None]
    if unsaid and len(lookups) > 1:
        said = len(unsaid) < len(lookups)
        largest = max(unsaid, key=lambda source: limits[source])
        for source in unsaid:
            if said or source != largest:
                del lookups[source]
    return lookups, limits


def _examples(inputs: InputSet, dtype: torch.dtype) -> tuple[Tensor, ...]:
    values = inputs.to_file(inputs.probes()[0])
    return tuple(value.to(dtype) if value.is_floating_point() else value for value in values)


class _Builder:
    def __init__(
        self,
        lowered: Lowered,
        inputs: InputSet,
        placeholders: list[fx.Node],
        lookups: dict[int, Lookup],
        limits: dict[int, int],
        examples: tuple[Tensor, ...],
        dtype: torch.dtype,
    ) -> None:
        self.lowered, self.graph, self.dtype = lowered, lowered.graph, dtype
        self.placeholders, self.lookups, self.examples = placeholders, lookups, examples
        self.limits = limits
        self.notes: list[str] = []
        self.inputs = self._settled(inputs)
        self.parts: list[Part] = []
        self.encoders: list[tuple[int, nn.Module | None]] = []
        self.slots: list[Slot] = []
        self.replaced: list[fx.Node] = []
        self.shapes: dict[fx.Node, fx.Node] = {}  # tokens of which only the shape is needed

    def _settled(self, inputs: InputSet) -> InputSet:
        """Every input with its kind, and no more free sizes than a packed row can have."""
        items = []
        for item in inputs.items:
            if item.default is None and inputs.given.index(item) in self.lookups:
                item = replace(item, kind=InputKind.TOKENS, dtype=torch.int64)
            elif item.default is None and item.kind is None:
                item = self._numbers_or_integers(inputs, item)
            items.append(item)
        packed = len(items) > 1
        if packed and any(len(item.free_axes) > 1 for item in items):
            items = [item.fixed() for item in items]
            self.notes.append("Of several inputs, only those with one free size may vary.")
        return InputSet(items, self.dtype)

    def _numbers_or_integers(self, inputs: InputSet, item: ResolvedInput) -> ResolvedInput:
        """A file's integers are numbers where its graph computes the same with floats."""
        if item.dtype.is_floating_point and not item.integral:
            return replace(item, kind=InputKind.VALUES)
        if len(inputs.items) > 1 and item.file_dtype is not torch.uint8:
            return replace(item, kind=InputKind.INTEGERS, dtype=torch.int64)
        position = inputs.items.index(item)
        as_floats = list(self.examples)
        as_floats[position] = as_floats[position].to(self.dtype)
        is_byte = item.file_dtype is torch.uint8
        continued = is_byte or _passes_gradients(self.graph, as_floats, position)
        if continued and _same(self.graph, self.examples, as_floats):
            self.notes.append(
                f"The input {item.name} takes integers; between them the network's own "
                "arithmetic is continued."
            )
            bounds = item.bounds
            if bounds is None and item.file_dtype is torch.uint8:
                bounds = type(bounds)(0, 255) if bounds else _byte_bounds()
            return replace(item, kind=InputKind.VALUES, dtype=self.dtype, bounds=bounds)
        return replace(item, kind=InputKind.INTEGERS, dtype=torch.int64)

    def build(self) -> Rows:
        given = self.inputs.given
        if len(self.inputs.items) == 1 and given[0].kind is InputKind.VALUES:
            rows = Rows(given[0], self.inputs)
            rows.notes = self.notes
            return rows
        for item, placeholder in zip(self.inputs.items, self.placeholders, strict=True):
            self._place(item, placeholder)
        packing = Packing(self.parts) if len(self.parts) > 1 else None
        encoder = Encoder(self.inputs.packing, self.encoders, packing, self.dtype)
        limits = tuple(self.limits.get(source, 0) for source in range(len(given)))
        rows = _rows(self.inputs, encoder, self.parts, limits, self.dtype)
        rows.notes = self.notes
        self._rewire(packing, rows.x)
        return rows

    def _place(self, item: ResolvedInput, placeholder: fx.Node) -> None:
        if item.default is not None:
            dtype = item.file_dtype or item.dtype
            dtype = self.dtype if dtype.is_floating_point else dtype
            sizes = item.sizes or item.shape
            self._slot(placeholder, Slot(None, dtype, sizes=sizes, value=item.default))
            return
        source = self.inputs.given.index(item)
        lookup = self.lookups.get(source)
        if lookup is not None:
            node = lookup.node
            self._part(Part(item.name, lookup.sizes), source, lookup.encoder)
            self._slot(node, Slot(len(self.parts) - 1, self.dtype))
            self.shapes[placeholder] = node
            if not lookup.aligned or _is_needed(placeholder, node):
                self.shapes.pop(placeholder, None)
                ids = item.file_dtype or torch.int64
                self._part(Part(f"{item.name}.indices", item.sizes or item.shape, True), source)
                self._slot(placeholder, Slot(len(self.parts) - 1, ids))
            return
        fixed = item.kind is InputKind.INTEGERS
        dtype = (item.file_dtype or torch.int64) if fixed else self.dtype
        self._part(Part(item.name, item.sizes or item.shape, fixed), source)
        self._slot(placeholder, Slot(len(self.parts) - 1, dtype, mean=item.mean, std=item.std))

    def _part(self, made: Part, source: int, encoder: nn.Module | None = None) -> None:
        self.parts.append(made)
        self.encoders.append((source, encoder))

    def _slot(self, node: fx.Node, slot: Slot) -> None:
        self.replaced.append(node)
        self.slots.append(slot)

    def _rewire(self, packing: Packing | None, x: ResolvedInput) -> None:
        graph, first = self.graph.graph, self.placeholders[0]
        with graph.inserting_before(first):
            row = graph.placeholder("row")
            row.meta["kind"] = "input"
        with graph.inserting_after(self.placeholders[-1]):
            free = x.free_axes[0] if packing is None and x.free_axes else None
            self.graph.add_submodule("unpack_row", Unpack(packing, self.slots, free))
            unpacked = graph.call_module("unpack_row", (row,))
        after = unpacked
        picked: dict[fx.Node, fx.Node] = {}
        transposed = {item.node for item in self.lookups.values() if item.transposed}
        for index, node in enumerate(self.replaced):
            with graph.inserting_after(after):
                value = after = graph.call_function(_pick, (unpacked, index))
            picked[node] = value
            value.meta["kind"] = str(node.meta.get("kind", "input"))
            if node in transposed:
                with graph.inserting_after(after):
                    value = after = graph.call_function(torch.transpose, (value, 0, 1))
                value.meta["kind"] = "transpose"
            node.replace_all_uses_with(value)
            for name, layer in self.lowered.layers.items():
                if layer == node.name:
                    self.lowered.layers[name] = value.name
        for placeholder, lookup in self.shapes.items():
            with graph.inserting_after(after):
                like = graph.call_function(torch.select, (picked[lookup], -1, 0))
            like.meta["kind"] = "select"
            for user in list(placeholder.users):
                if _reads_no_values(user):
                    user.replace_input_with(placeholder, like)
        graph.eliminate_dead_code()
        for placeholder in self.placeholders:
            graph.erase_node(placeholder)
        graph.lint()
        self.graph.recompile()


def _pick(values: Sequence[Tensor], index: int) -> Tensor:
    return values[index]


def _rows(
    inputs: InputSet,
    encoder: Encoder,
    parts: Sequence[Part],
    limits: tuple[int, ...],
    dtype: torch.dtype,
) -> Rows:
    drawn = [limit or 2 for limit in limits] or [2] * len(inputs.given)
    five, two = (encoder(rows) for rows in inputs.probes(drawn))
    packing = encoder.packing
    sizes: tuple[int | None, ...] = parts[0].sizes if packing is None else packing.sizes
    given = inputs.given
    shared = {item.bounds for item in given}
    kept = not any(made.fixed for made in parts) and all(
        item.dtype.is_floating_point for item in given
    )
    x = ResolvedInput(
        name=given[0].name,
        shape=tuple(five.shape[1:]),
        layout=given[0].layout if packing is None and kept else "other",
        dtype=dtype,
        bounds=shared.pop() if kept and len(shared) == 1 else None,
        fixed_batch=next((item.fixed_batch for item in inputs.items if item.fixed_batch), None),
        sizes=sizes if None in sizes else (),
        samples=(five, two),
    )
    return Rows(x, inputs, encoder, packing, limits)


def _byte_bounds() -> Any:
    from .classifier import Bounds

    return Bounds(0, 255)


def _same(graph: fx.GraphModule, left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    with torch.no_grad():
        try:
            pairs = zip(_flat(graph.forward(*left)), _flat(graph.forward(*right)), strict=True)
            return all(agree(difference(b, a), a.dtype) for a, b in pairs)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False


def _passes_gradients(graph: fx.GraphModule, values: Sequence[Tensor], position: int) -> bool:
    """Whether any output can be differentiated by an input, rather than looking things up by it."""
    leaf = values[position].detach().clone().requires_grad_()
    with torch.enable_grad():
        try:
            outputs = _flat(graph.forward(*values[:position], leaf, *values[position + 1 :]))
            total = sum(value.sum() for value in outputs if value.requires_grad)
            if not isinstance(total, Tensor):
                return False
            return torch.autograd.grad(total, leaf, allow_unused=True)[0] is not None
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return False


def _flat(outputs: Any) -> list[Tensor]:
    from .logits import leaves

    return [value for _, value in leaves(outputs)]


def _reads_no_values(node: fx.Node) -> bool:
    """Whether a node reads a shape or a device alone: it makes no tensor, or a constant one."""
    return node.meta.get("kind") in (None, "constant")


def _is_needed(placeholder: fx.Node, lookup: fx.Node) -> bool:
    """Whether the outputs depend on an input's values other than through a lookup."""
    (output,) = (node for node in placeholder.graph.nodes if node.op == "output")
    pending, seen = [output], {lookup}
    while pending:
        node = pending.pop()
        for source in node.all_input_nodes:
            if source is placeholder and not _reads_no_values(node):
                return True
            if source not in seen and source is not placeholder:
                seen.add(source)
                pending.append(source)
    return False
