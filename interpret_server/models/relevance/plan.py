"""Which rule every node on the way to a target follows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from torch import Tensor, fx, nn

from ...errors import FailedPrecondition
from ..classifier import Classifier
from ..execution.draft import Draft, Observed, writes
from . import rules
from .fused import take_attention_apart
from .linear_rules import Gamma, LinearRule
from .norms import held_constant
from .operators import CONVOLUTIONS, Role, gating, name_of, role_of
from .recurrence import RecurrentRules

_ARITHMETIC = frozenset({
    "add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "truediv",
})  # fmt: skip
_FIRST_ALONE = frozenset({"grid_sample", "grid_sampler", "grid_sampler_2d", "sample", "rotated"})
_SEVERAL = frozenset({"normalise_layer", "_native_batch_norm_legit_no_training"})
_STORED_STATISTICS = frozenset({"batch_norm", "normalise_with", *_SEVERAL})
_SUMS = (Role.SHARE, Role.SUBTRACT)
_DEPTH = 12  # operators in an activation that is written out


@dataclass(frozen=True)
class Composite:
    """A rule for every kind of node.

    Args:
        convolution: of convolutions.
        dense: of linear layers.
        first: of convolutions that no other layer with weights precedes, but for those over
            embedded tokens; None for `convolution`; `z_box` for that rule with the bounds of the
            input.
        epsilon: stabilises sums, products and normalisation.
        products: of two values that both depend on the input: `uniform` gives each half; `signal`
            gives a gate (a sigmoid, a softmax, another bounded function) nothing.
        normalisation: `linear` holds the deviations constant and goes by the linear rest;
            `identity` hands each value's relevance down unchanged.
    """

    convolution: LinearRule
    dense: LinearRule
    first: LinearRule | Literal["z_box"] | None = None
    epsilon: float = 1e-6
    products: Literal["uniform", "signal"] = "signal"
    normalisation: Literal["linear", "identity"] = "linear"


@dataclass(frozen=True)
class Step:
    """What a node does to relevance.

    Args:
        role: of its operator.
        sources: the nodes that relevance goes to.
        rule: None for nodes that only move values.
        changes: it works in place.
        boxed: the layer, where its rule needs the bounds of what it reads.
        stand_in: called in the operator's place when relevance is shared.
        several: the operator gives other values after the one that counts.
        recurrent: of a recurrent layer, which is run step by step.
    """

    role: Role
    sources: tuple[fx.Node, ...]
    rule: rules.Rule | None = None
    changes: bool = False
    boxed: nn.Module | None = None
    stand_in: Callable[..., Tensor] | None = None
    several: bool = False
    recurrent: RecurrentRules | None = None


@dataclass(frozen=True)
class Plan:
    """A network up to a target, with a step for every node that relevance comes to.

    Args:
        graph: from `(N, *input_shape)`, normalised, to `(value,)`.
        steps: by node.
        boxes: the nodes whose values' bounds are needed.
    """

    graph: fx.GraphModule
    steps: dict[fx.Node, Step]
    boxes: tuple[fx.Node, ...]


def plan(model: Classifier, target: str | None, composite: Composite) -> Plan:
    """Assign a rule to every node between the input and a target.

    Batch norm, and scales and shifts that are constant for each channel, are first merged with the
    layer before them.

    Args:
        model: with readable layers.
        target: a layer's name; None for the logits.
        composite: the rules.

    Raises:
        FailedPrecondition: an operator on the way has no rule, or the bounds that a rule needs are
            unknown.
    """
    draft = model.plans.folded(_end(model, target), model.example)
    take_attention_apart(draft)
    steps = _Planner(model, draft, composite).steps()
    boxes = tuple(step.sources[0] for step in steps.values() if step.boxed is not None)
    return Plan(draft.compile(), steps, boxes)


def check_rules(model: Classifier, composite: Composite) -> None:
    """Refuse a network in which an operator on the way to the logits has no rule.

    Raises:
        FailedPrecondition: as `plan` does.
    """
    steps = _Planner(model, draft_of(model, None), composite).steps()
    if any(step.boxed is not None for step in steps.values()):
        _ = model.bounds


def draft_of(model: Classifier, target: str | None) -> Draft:
    """A copy of a network's graph up to a target, with fused attention taken apart."""
    graph = model.plans.graph
    assert graph is not None  # layers can be read
    draft = Draft.of(graph, model.plans.observed(model.example), (_end(model, target),))
    take_attention_apart(draft)
    return draft


def _end(model: Classifier, target: str | None) -> str:
    return model.plans.last if target is None else model.layer(target).node


class _Planner:
    def __init__(self, model: Classifier, draft: Draft, composite: Composite) -> None:
        self.model, self.draft, self.composite = model, draft, composite
        self.layers = {layer.node: name for name, layer in model.layers.items()}
        self.dependent: set[fx.Node] = set()
        for node in draft.graph.nodes:
            reached = node.op == "placeholder" or self.dependent.intersection(node.all_input_nodes)
            by_value = role_of(draft, node) is not Role.NONE
            if reached and by_value and _carries(draft.observed.get(node)):
                self.dependent.add(node)
        self.raw: set[fx.Node] = set()  # values of the input itself, moved and scaled
        self.deep: set[fx.Node] = set()  # values that a layer with weights precedes
        self.centred: set[fx.Node] = set()  # less their mean, in a norm that is written out
        self.normalised: set[fx.Node] = set()  # and divided by their deviation

    def steps(self) -> dict[fx.Node, Step]:
        (end,) = cast(tuple[fx.Node], self.draft.graph.output_node().args[0])
        reached, sources = {end}, {}
        for node in reversed(list(self.draft.graph.nodes)):
            if node in reached and node in self.dependent and node.op != "placeholder":
                sources[node] = self._sources(node)
                reached.update(sources[node])
        steps = {}
        for node in self.draft.graph.nodes:
            if node.op == "placeholder":
                self.raw.add(node)
            elif node in sources:
                steps[node] = self._step(node, sources[node])
        return steps

    def _sources(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The nodes that relevance goes to."""
        role, found = self._role(node), self._operands(node)
        if role in (Role.PASS, Role.DIVIDE) or name_of(self.draft, node) in _FIRST_ALONE:
            return found[:1]
        if role is Role.PRODUCT and len(found) == 2:
            whole = tuple(item for item in found if not self._is_inverse(item))
            if len(whole) == 1:
                return whole
        if role is Role.PRODUCT and len(found) == 2 and self.composite.products == "signal":
            strengths = [gating(self.draft, item) for item in found]
            if strengths[0] != strengths[1]:
                return (found[strengths.index(min(strengths))],)
        if role is Role.PRODUCT and len(found) == 2 and (signal := self._gated_by_itself(found)):
            return (signal,)
        if role is Role.SUBTRACT and self._is_centring(found):
            return found[:1] if self.composite.normalisation == "identity" else found
        return found

    def _step(self, node: fx.Node, sources: tuple[fx.Node, ...]) -> Step:
        role, composite = self._role(node), self.composite
        module: Any = self.draft.module(node)
        epsilon = composite.epsilon
        changes = writes(node) or bool(getattr(module, "inplace", False))
        self._note(node, role, sources)
        rule: rules.Rule | None = None
        boxed, stand_in = None, None
        if role is Role.WEIGHTED:
            chosen = self._weighted(node, module, sources)
            boxed = module if chosen == "z_box" else None
            rule = None if chosen == "z_box" else rules.weighted(module, chosen)
        elif self._is_unchanged(node, role, sources):
            rule = rules.unchanged
        elif role is Role.PRODUCT:
            rule = self._product(node, sources)
        elif role is Role.SOFTMAX:
            rule = rules.softmax
        elif role is Role.NORM:
            if composite.normalisation == "identity":
                rule = rules.unchanged
            else:
                stand_in = held_constant(module, name_of(self.draft, node))
                rule = rules.proportional(epsilon)
        elif role is Role.GATE:
            axis: Any = module.dim if module is not None else (*node.args, -1)[1]
            rule = rules.half_gated(axis, 0.0 if composite.products == "signal" else 0.5)
        elif role in _SUMS:
            rule = rules.proportional(epsilon)
        several = name_of(self.draft, node) in _SEVERAL
        steps = RecurrentRules(composite.dense, epsilon) if role is Role.RECURRENT else None
        return Step(role, sources, rule, changes, boxed, stand_in, several, steps)

    def _is_unchanged(self, node: fx.Node, role: Role, sources: tuple[fx.Node, ...]) -> bool:
        """Whether each of a node's values keeps its relevance."""
        if role in (Role.PASS, Role.DIVIDE) or (node in self.raw and role in _SUMS):
            return True
        if role is Role.SUBTRACT and node in self.centred:
            return True
        alone = len(self._operands(node)) == 1
        return alone and name_of(self.draft, node) == "add" and sources[0] in self.normalised

    def _product(self, node: fx.Node, sources: tuple[fx.Node, ...]) -> rules.Rule:
        """Of a product with one or several factors that relevance goes to."""
        operands = self._operands(node)
        if len(sources) == 1 and name_of(self.draft, node) in ("mul", "multiply"):
            return rules.unchanged
        if len(sources) == 1 < len(operands):
            return rules.proportional(self.composite.epsilon)
        again = sum(isinstance(item, fx.Node) and item in self.dependent for item in node.args)
        return rules.uniform(self.composite.epsilon, max(len(operands), again))

    def _weighted(
        self, node: fx.Node, module: nn.Module, sources: tuple[fx.Node, ...]
    ) -> LinearRule | Literal["z_box"]:
        if not isinstance(module, CONVOLUTIONS):
            return self._others(node, self.composite.dense)
        tokens = self.model.encoded and self.model.packing is None
        if self.composite.first is None or tokens or self.deep.intersection(sources):
            return self._others(node, self.composite.convolution)
        if self.composite.first == "z_box" and not self.raw.issuperset(sources):
            raise FailedPrecondition(
                f"the bounds of what layer {self._layer(node)!r} of {self.model.name} reads are "
                "not known, because the input passes other operators before it, and z_box needs "
                "them"
            )
        return self.composite.first

    def _others(self, node: fx.Node, rule: LinearRule) -> LinearRule:
        """A rule, told where only rectifiers read the layer: what is below 0 gets nothing then."""
        readers = {type(self.draft.module(user)) for user in node.users}
        if isinstance(rule, Gamma) and readers <= {nn.ReLU, nn.ReLU6}:
            return replace(rule, rectified=True)
        return rule

    def _note(self, node: fx.Node, role: Role, sources: tuple[fx.Node, ...]) -> None:
        """Remember where a node's values come from."""
        moved = role in (Role.MOVE, Role.UNPACK) or self._is_preprocessing(node)
        if role in (Role.WEIGHTED, Role.RECURRENT) or self.deep.intersection(sources):
            self.deep.add(node)
        elif moved and self.raw.issuperset(sources):
            self.raw.add(node)

        if self.composite.normalisation == "identity" and len(sources) == 1:
            (source,) = sources
            by_deviation = role is Role.DIVIDE or len(self._operands(node)) == 2
            scaled = role is Role.PRODUCT and source in self.normalised
            if scaled or (by_deviation and source in self.centred):
                self.normalised.add(node)
            elif role is Role.SUBTRACT and len(self._operands(node)) == 2:
                self.centred.add(node)

    def _is_preprocessing(self, node: fx.Node) -> bool:
        """Whether a node scales or shifts by constants that differ along one axis at most."""
        name = name_of(self.draft, node)
        if name.startswith("batchnorm") or name in _STORED_STATISTICS:
            return self._role(node) is Role.PASS
        others = [item for item in node.all_input_nodes if item not in self.dependent]
        shapes = [self.draft.shape(item) or () for item in others]
        return (
            name in _ARITHMETIC
            and len(self._operands(node)) == 1
            and all(sum(size > 1 for size in shape) <= 1 for shape in shapes)
        )

    def _gated_by_itself(self, factors: tuple[fx.Node, ...]) -> fx.Node | None:
        """The factor x of `x * g(x)`, an activation that is written out."""
        for signal, gate in (factors, factors[::-1]):
            origin = signal
            while self._is_preprocessing(origin):
                (origin,) = self._operands(origin)
            if gating(self.draft, gate) and self._is_function_of(gate, origin, _DEPTH):
                return signal
        return None

    def _is_function_of(self, node: fx.Node, origin: fx.Node, depth: int) -> bool:
        """Whether a node's values are a function of another's, element by element."""
        if node is origin:
            return True
        operands = self._operands(node)
        element_wise = (
            role_of(self.draft, node) is Role.PASS or name_of(self.draft, node) in _ARITHMETIC
        )
        return (
            depth > 0
            and bool(operands)
            and element_wise
            and all(self._is_function_of(item, origin, depth - 1) for item in operands)
        )

    def _is_centring(self, operands: tuple[fx.Node, ...]) -> bool:
        """Whether the second operand is the mean of the first."""
        return (
            len(operands) == 2
            and name_of(self.draft, operands[1]) in ("mean", "mean_over")
            and operands[0] in operands[1].all_input_nodes
        )

    def _is_inverse(self, node: fx.Node) -> bool:
        """Whether a node divides what it is multiplied by, as a written-out norm does."""
        while role_of(self.draft, node) is Role.MOVE and len(self._operands(node)) == 1:
            (node,) = self._operands(node)
        power = node.args[1] if len(node.args) > 1 else None
        raised = name_of(self.draft, node) in ("pow", "power")
        return name_of(self.draft, node) in ("reciprocal", "rsqrt") or (
            raised and isinstance(power, (int, float)) and power < 0
        )

    def _operands(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """What a node reads that depends on the input."""
        return tuple(item for item in node.all_input_nodes if item in self.dependent)

    def _role(self, node: fx.Node) -> Role:
        role = role_of(self.draft, node)
        if role is None:
            kind = node.meta.get("kind") or name_of(self.draft, node)
            raise FailedPrecondition(
                f"relevance is not defined for {kind}, which layer {self._layer(node)!r} of "
                f"{self.model.name} computes"
            )
        bound = name_of(self.draft, node) in ("maximum", "minimum")
        return Role.PASS if bound and len(self._operands(node)) == 1 else role

    def _layer(self, node: fx.Node) -> str:
        return self.layers.get(node.name, node.name)


def _carries(seen: Observed | None) -> bool:
    """Whether a node may hold values that relevance can come to."""
    if seen is None or seen.dtype is None:
        return seen is None or not seen.plain
    return seen.dtype.is_floating_point or seen.dtype.is_complex
