"""The attention matrices of a network, with the target's gradient at them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ...errors import FailedPrecondition
from ..batching import InGroups
from ..classifier import Classifier
from ..execution.draft import Draft
from ..targets import Targets
from .groups import in_groups
from .operators import Role, name_of, role_of
from .plan import draft_of

_SAME = 1e-6  # of the largest value: two tokens that do not depend on the input


@dataclass(frozen=True)
class Attention:
    """Self-attention on the way to a target, from first to last.

    Args:
        weights: `(N, heads, T, T)` for each layer: how much of key j query i takes.
        gradients: of each row's target by these, alike.
        objective: `(N,)`, the target's value.
        logits: `(N, K)`, where the target is a class or another unit of the logits.
    """

    weights: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    objective: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Tokens:
    """Which tokens stand for parts of the input.

    Args:
        before: tokens in front of them that do not depend on the input, such as a class token.
        after: such tokens behind them.
        grid: over the spatial axes of the input, at the example's size; empty where unknown.
    """

    before: int
    after: int
    grid: tuple[int, ...]


@dataclass(frozen=True)
class _Found:
    """A softmax over keys, the values that it weighs, and the number of heads."""

    weights: fx.Node
    values: fx.Node
    heads: int


def check_attention(model: Classifier) -> int:
    """How many tokens attend to each other, at the example's size.

    Raises:
        FailedPrecondition: the attention cannot be followed from the input to the logits.
    """
    draft = draft_of(model, None)
    shape = draft.shape(_find(model, draft)[0].weights)
    return 0 if shape is None else shape[-1]


def attention(model: Classifier, x: Tensor, targets: Targets) -> Attention:
    """The attention matrices of each row by one pass forward and one back.

    Args:
        model: with gradients and readable layers.
        x: `(N, *input_shape)`; left as it was.
        targets: one per row.

    Raises:
        FailedPrecondition: there is no attention on the way to the target, or it is not among one
            and the same tokens everywhere.
    """
    draft = draft_of(model, targets.layer)
    found = _find(model, draft)
    output = draft.graph.output_node()
    (end,) = cast(tuple[fx.Node], output.args[0])
    output.args = ((end, *(item.weights for item in found)),)
    heads = [item.heads for item in found]
    graph = draft.compile()

    def run(rows: Tensor, chosen: Targets, count: int) -> tuple[Tensor | None, ...]:
        leaf = model.module.normalise(rows.detach()).detach().clone().requires_grad_()
        with torch.enable_grad():
            value, *weights = graph(leaf)
            value = value if value.dim() and len(value) == len(rows) else value[None]
            last = model.module.head(value) if chosen.layer is None else value
            objective = chosen.select(last[:count])
            gradients: Sequence[Tensor] = [torch.zeros_like(value) for value in weights]
            if objective.requires_grad:
                gradients = torch.autograd.grad(
                    objective.sum(), weights, allow_unused=True, materialize_grads=True
                )
        return (
            objective.detach(),
            last.detach()[:count] if chosen.layer is None else None,
            *(
                value.detach().reshape(len(rows), number, *value.shape[-2:])[:count]
                for values in (weights, gradients)
                for number, value in zip(heads, values, strict=True)
            ),
        )

    objective, logits, *values = in_groups(model, x, targets, run)
    return Attention(
        cast(tuple[Tensor, ...], tuple(values[: len(found)])),
        cast(tuple[Tensor, ...], tuple(values[len(found) :])),
        cast(Tensor, objective),
        logits,
    )


def tokens(model: Classifier, target: str | None, spatial: int) -> Tokens:
    """Which tokens of the first attention depend on the input, and how they lie over it.

    Args:
        model: as for `attention`.
        target: a layer's name; None for the logits.
        spatial: how many spatial axes the input has.
    """
    draft = draft_of(model, target)
    first = _find(model, draft)[0]
    grid = _grid(draft, first, spatial)
    draft.graph.output_node().args = ((first.values,),)
    draft.prune()
    graph, heads = draft.compile(), first.heads
    neutral = model.neutral(1)
    noise = torch.rand(neutral.shape, generator=torch.Generator().manual_seed(0))
    other = neutral + (noise.to(neutral) - 0.5) * model.scale
    probes = torch.cat([neutral, model.carry(other, neutral)])

    def run(rows: Tensor, _: Targets, count: int) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            (values,) = graph(model.module.normalise(rows))
        return (values.reshape(len(rows), heads, *values.shape[-2:])[:count],)

    (values,) = in_groups(model, probes, Targets.none(2), run)
    assert values is not None
    change = (values[0] - values[1]).abs().amax((0, 2))
    moving = (change > _SAME * values.abs().amax()).nonzero().flatten().tolist()
    if not moving:
        return Tokens(0, 0, ())
    before, after = moving[0], len(change) - 1 - moving[-1]
    return Tokens(before, after, grid if math.prod(grid) == len(change) - before - after else ())


def _find(model: Classifier, draft: Draft) -> list[_Found]:
    rows = model.module.body.size if isinstance(model.module.body, InGroups) else 2
    found = [item for node in draft.graph.nodes if (item := _attention_at(draft, node, rows))]
    shapes = [draft.shape(item.weights) or (0, 1) for item in found]
    square = [index for index, shape in enumerate(shapes) if shape[-1] == shape[-2]]
    if not square:
        raise FailedPrecondition(
            f"{model.name} has no self-attention on the way to the target: no softmax over keys "
            "weighs values there"
        )
    kept = found[: square[-1] + 1]  # what comes later only reads the tokens
    if len(square) < len(kept):
        raise FailedPrecondition(
            f"{model.name} attends from one set of tokens to another on the way to the target, and "
            "attention rollout is defined for self-attention alone"
        )
    sizes = {shapes[index][-1] for index in square}
    if len(sizes) > 1:
        raise FailedPrecondition(
            f"the self-attention of {model.name} is among {sorted(sizes)} tokens in different "
            "layers, which attention rollout cannot follow"
        )
    if any(not item.heads for item in kept) or not _has_tokens(draft, rows, sizes.pop()):
        raise FailedPrecondition(
            f"{model.name} attends within windows or groups of tokens, which attention rollout "
            "cannot follow"
        )
    return kept


def _attention_at(draft: Draft, node: fx.Node, rows: int) -> _Found | None:
    """The attention whose softmax a node is, if it is one."""
    shape = draft.shape(node)
    if shape is None or len(shape) not in (3, 4) or role_of(draft, node) is not Role.SOFTMAX:
        return None
    module: Any = draft.module(node)
    given = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    axis = module.dim if isinstance(module, nn.Softmax) else given
    if axis not in (-1, len(shape) - 1):
        return None
    heads = shape[1] if len(shape) == 4 else shape[0] // rows
    if shape[0] % rows or (len(shape) == 4 and shape[0] != rows):
        heads = 0
    for product in _readers(draft, node):
        factors = [item for item in product.args if isinstance(item, fx.Node)]
        if len(factors) == 2 and factors[0] in _moved(draft, node):
            return _Found(node, factors[1], heads)
    return None


def _moved(draft: Draft, node: fx.Node) -> list[fx.Node]:
    """A node, and those that only move its values."""
    found = [node]
    for item in found:
        for user in item.users:
            if user not in found and user.op != "output" and role_of(draft, user) is Role.MOVE:
                found.append(user)
    return found


def _readers(draft: Draft, node: fx.Node) -> list[fx.Node]:
    """The products that read a node's values, moved or not."""
    return [
        user
        for item in _moved(draft, node)
        for user in item.users
        if user.op != "output" and name_of(draft, user) in ("matmul", "bmm", "einsum", "contract")
    ]


def _has_tokens(draft: Draft, rows: int, length: int) -> bool:
    """Whether some value holds one vector for each token of each row."""
    shapes = [seen.shape or () for seen in draft.observed.values()]
    return any(len(shape) == 3 and set(shape[:2]) >= {rows, length} for shape in shapes)


def _grid(draft: Draft, first: _Found, spatial: int) -> tuple[int, ...]:
    """The sizes of the last map over the input's spatial axes before the first attention."""
    grid: tuple[int, ...] = ()
    for node in draft.graph.nodes:
        if node is first.weights:
            break
        shape = draft.shape(node) or ()
        if len(shape) == spatial + 2 and "conv" in name_of(draft, node):
            grid = shape[2:]
    return grid
