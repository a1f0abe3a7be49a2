"""Relevance of an input: one pass forward and one back through a plan."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ..classifier import Classifier
from ..logits import Log
from ..packing import Slot, Unpack
from ..targets import Targets
from .groups import in_groups
from .linear_rules import ZBox
from .operators import Role
from .plan import Composite, Plan, Step, plan
from .recurrence import recurrent, recurrent_module
from .rules import Rule, relayed, unchanged, weighted


class Relevance(NamedTuple):
    """Where a target's value comes from.

    Args:
        inputs: `(N, *input_shape)`, each input value's share.
        objective: `(N,)`, the target's value.
        logits: `(N, K)`, where the target is a class or another unit of the logits.
    """

    inputs: Tensor
    objective: Tensor
    logits: Tensor | None


def relevance(model: Classifier, x: Tensor, targets: Targets, composite: Composite) -> Relevance:
    """Hand each row's target value down to its input, layer by layer.

    The canonical graph runs, in the model's own floating-point type. Normalisation by the manifest
    is passed unchanged, so that an input value has the relevance of its normalised value.

    Args:
        model: with readable layers.
        x: `(N, *input_shape)`; left as it was.
        targets: one per row.
        composite: the rules.

    Raises:
        FailedPrecondition: an operator on the way to the target has no rule.
    """
    made = plan(model, targets.layer, composite)

    def run(rows: Tensor, chosen: Targets, count: int) -> tuple[Tensor | None, ...]:
        return _of_rows(model, made, rows, chosen, count)

    return Relevance(*in_groups(model, x, targets, run))  # type: ignore[arg-type]


def _of_rows(model: Classifier, made: Plan, x: Tensor, targets: Targets, count: int) -> Relevance:
    """The same of rows that run together, of which the first `count` are asked for."""
    leaf = model.module.normalise(x.detach()).detach().clone().requires_grad_()
    steps = _with_bounds(model, made, x)
    with torch.enable_grad():
        (value,) = _Walk(made.graph, steps).run(leaf)
        value = value if value.dim() and len(value) == len(x) else value[None]
        seed, objective, logits = _seed(model, value.detach(), targets, count)
        found = torch.zeros_like(leaf)
        if value.requires_grad:
            (found,) = torch.autograd.grad(
                value, leaf, seed, allow_unused=True, materialize_grads=True
            )
    return Relevance(found[:count].to(x.dtype), objective, logits)


def _seed(
    model: Classifier, value: Tensor, targets: Targets, count: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The relevance of the values that a target reads, the target's value, and the logits.

    A target is linear in what it reads, and each of these values gets what it contributes. Where
    logits are the logarithms of what the network gives, contributions are scaled to sum to the
    target.
    """
    leaf = value.clone().requires_grad_()
    head = model.module.head if targets.layer is None else nn.Identity()
    last = head(leaf)
    objective = targets.select(last[:count])
    (slope,) = torch.autograd.grad(objective.sum(), leaf, materialize_grads=True)
    seed = leaf.detach() * slope
    objective = objective.detach()
    if any(isinstance(module, Log) for module in head.modules()):
        total = seed[:count].flatten(1).sum(1)
        factor = torch.where(total == 0, 0, objective / torch.where(total == 0, 1, total))
        seed[:count] *= factor.reshape(-1, *(1,) * (seed.dim() - 1))
    return seed, objective, last.detach()[:count] if targets.layer is None else None


def _with_bounds(model: Classifier, made: Plan, x: Tensor) -> Mapping[fx.Node, Step]:
    """The plan's steps, with the rules that need the bounds of the input."""
    if not made.boxes:
        return made.steps
    ends = [_boxes(model, made, torch.full_like(x, bound)) for bound in model.bounds]
    steps = dict(made.steps)
    for node, step in made.steps.items():
        if step.boxed is not None:
            first, second = (end[step.sources[0]] for end in ends)
            low, high = torch.minimum(first, second), torch.maximum(first, second)
            rule = weighted(step.boxed, ZBox(low, high))
            steps[node] = Step(step.role, step.sources, rule)
    return steps


def _boxes(model: Classifier, made: Plan, x: Tensor) -> dict[fx.Node, Tensor]:
    """What the nodes that need bounds give at an input."""
    keeper = _Keeper(made.graph, frozenset(made.boxes))
    with torch.no_grad():
        keeper.run(model.module.normalise(x))
    return keeper.kept


class _Keeper(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, wanted: frozenset[fx.Node]) -> None:
        super().__init__(graph)
        self.wanted = wanted
        self.kept: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.kept[n] = value
        return value


class _Walk(fx.Interpreter):
    """Runs a graph so that its backward pass hands down relevance."""

    def __init__(self, graph: fx.GraphModule, steps: Mapping[fx.Node, Step]) -> None:
        super().__init__(graph)
        self.steps = steps

    def run_node(self, n: fx.Node) -> Any:
        step = self.steps.get(n)
        if step is None:
            if n.op in ("placeholder", "output"):
                return super().run_node(n)
            with torch.no_grad():
                return super().run_node(n)
        if step.role is Role.UNPACK:
            return self._unpacked(n, step)
        if step.recurrent is not None:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            if n.op == "call_module":
                module: Any = self.fetch_attr(str(n.target))
                return recurrent_module(step.recurrent, module, *args, **kwargs)
            return recurrent(step.recurrent, *args, **kwargs)
        if step.rule is None:
            return super().run_node(n)
        values = tuple(self.env[source] for source in step.sources)
        if step.changes:
            values = tuple(value.clone() for value in values)
        call = self._function(n, step)
        rule = step.rule
        if step.stand_in is not None:
            rule = _instead(self._function(n, step, step.stand_in), rule)
        result = relayed(call, rule, *values)
        return (result,) if step.several else result

    def _function(
        self, node: fx.Node, step: Step, stand_in: Callable[..., Tensor] | None = None
    ) -> Callable[..., Any]:
        """A node as a function of the values that relevance goes to."""
        places = {source: place for place, source in enumerate(step.sources)}
        fixed = {item: self.env[item] for item in node.all_input_nodes if item not in places}
        target: Any = stand_in
        if stand_in is None:
            target = self.fetch_attr(str(node.target)) if node.op == "call_module" else node.target

        def call(*values: Tensor) -> Any:
            def value_of(item: fx.Node) -> Any:
                return values[places[item]] if item in places else fixed[item]

            args, kwargs = map_arg(node.args, value_of), map_arg(node.kwargs, value_of)
            if node.op == "call_method" and stand_in is None:
                return getattr(args[0], target)(*args[1:], **kwargs)
            result = target(*args, **kwargs)
            return result[0] if step.several and isinstance(result, (tuple, list)) else result

        return call

    def _unpacked(self, node: fx.Node, step: Step) -> tuple[Tensor, ...]:
        """Several inputs out of one row; their normalisation is passed unchanged."""
        unpack: Any = self.fetch_attr(str(node.target))
        row = self.env[step.sources[0]]
        slots = [Slot(s.part, s.dtype, sizes=s.sizes, value=s.value) for s in unpack.slots]
        moved = Unpack(unpack.packing, slots, unpack.free_axis)(row)
        with torch.no_grad():
            values = unpack(row)
        return tuple(
            relayed(lambda _, value=value: value, unchanged, source)
            if source.requires_grad
            else value
            for source, value in zip(moved, values, strict=True)
        )


def _instead(function: Callable[..., Any], rule: Rule) -> Rule:
    """A rule by which relevance is shared as if another function had run."""
    return lambda _, values, relevance: rule(function, values, relevance)
