"""Where a graph looks up its tokens, so that gradients can be taken at the embedding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..errors import InvalidRequest
from .inputs import ResolvedInput
from .lowered import Lowered

_SAME_INDICES = frozenset(
    {"cast", "to", "identity", "contiguous", "clone", "detach", "alias", "indices"}
)
_MOVED_INDICES = _SAME_INDICES | {
    "t", "transpose", "permute", "reshape", "view", "flatten", "unsqueeze", "squeeze",
}  # fmt: skip


@dataclass
class Lookup:
    """One embedding of one input.

    Args:
        node: that gives the embeddings.
        encoder: from indices `(N, ...)` to embeddings `(N, ...)`.
        sizes: of one row of embeddings; None where free.
        limit: indices lie in [0, limit); 0 where unknown.
        transposed: the node gives the first two axes the other way round.
        aligned: a row of embeddings has the shape of its indices, and one axis more.
    """

    node: fx.Node
    encoder: nn.Module
    sizes: tuple[int | None, ...]
    limit: int
    transposed: bool
    aligned: bool


def find_lookup(
    lowered: Lowered, placeholder: fx.Node, examples: Sequence[Tensor], item: ResolvedInput
) -> Lookup | None:
    """The embedding that an input is looked up in: the largest one, or that of the manifest.

    Raises:
        InvalidRequest: the manifest names another layer, or tokens that no embedding looks up.
    """
    graph = lowered.graph
    found = [
        lookup
        for node in graph.graph.nodes
        if str(node.meta.get("kind")) == "embedding"
        and _placeholders(node) == {placeholder}
        and (lookup := _lookup(graph, node, placeholder, item)) is not None
    ]
    if item.embedding is not None:
        named = lowered.layers.get(item.embedding)
        chosen = [lookup for lookup in found if lookup.node.name == named]
        if not chosen:
            names = [
                name
                for name, node in lowered.layers.items()
                if node in {lookup.node.name for lookup in found}
            ]
            raise InvalidRequest.field(
                f"{item.field}.embedding",
                f"{item.embedding!r} looks up no token of {item.name}; these do: "
                f"{', '.join(names) or 'none'}",
            )
        return chosen[0]
    return max(found, key=lambda lookup: lookup.limit, default=None)


def _placeholders(node: fx.Node) -> set[fx.Node]:
    return {item for item in _ancestors(node) if item.op == "placeholder"}


def _ancestors(node: fx.Node) -> set[fx.Node]:
    pending, seen = [node], {node}
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return seen


def _lookup(
    graph: fx.GraphModule, node: fx.Node, placeholder: fx.Node, item: ResolvedInput
) -> Lookup | None:
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    table = getattr(module, "weight", None)
    moved = _origin(node, _MOVED_INDICES) is placeholder
    limit = len(table) if moved and isinstance(table, Tensor) else 0
    same = _origin(node, _SAME_INDICES) is placeholder
    encoder = module if same and module is not None else _up_to(graph, node)
    try:
        small, large = (_values(encoder, item, rows) for rows in (2, 3))
        sizes: tuple[int | None, ...] = tuple(small.shape)
        transposed = not (sizes[0] == 2 and large.shape[0] == 3)
        if transposed:
            if len(sizes) < 2 or not (sizes[1] == 2 and large.shape[1] == 3):
                return None
            encoder = _Transposed(encoder)
            small = small.transpose(0, 1)
        row: tuple[int | None, ...] = tuple(small.shape[1:])
        if item.free_axes:
            other = _values(encoder, item, 2, extra=1)
            row = tuple(a if a == b else None for a, b in zip(row, other.shape[1:], strict=True))
    except (RuntimeError, IndexError, ValueError, TypeError):
        return None
    raw = item.sizes or item.shape
    return Lookup(node, encoder, row, limit, transposed, row[:-1] == raw)


def _origin(node: fx.Node, kinds: frozenset[str]) -> object:
    """Where a lookup's indices come from, before nodes of some kinds."""
    source = node.args[0] if node.args else None
    while isinstance(source, fx.Node) and str(source.meta.get("kind")) in kinds:
        source = source.args[0]
    return source


class _Transposed(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, indices: Tensor) -> Tensor:
        values: Tensor = self.body(indices)
        return values.transpose(0, 1)


@torch.no_grad()
def _values(encoder: nn.Module, item: ResolvedInput, rows: int, extra: int = 0) -> Tensor:
    shape = [
        size + extra if axis in item.free_axes else size for axis, size in enumerate(item.shape)
    ]
    values: Tensor = encoder(torch.zeros(rows, *shape, dtype=torch.int64))
    return values


def _up_to(graph: fx.GraphModule, node: fx.Node) -> fx.GraphModule:
    """The part of a graph that a node needs, as a graph."""
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    needed = _ancestors(node)
    for original in graph.graph.nodes:
        if original in needed:
            copies[original] = part.node_copy(original, lambda source: copies[source])
    part.output(copies[node])
    return fx.GraphModule(graph, part)
