"""Gradients at a layer inside the network, and which layers lie on the way to a target."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from .batching import InGroups
from .classifier import Classifier, Layer
from .execution.draft import writes
from .targets import Targets


class LayerGradient(NamedTuple):
    """A gradient at a layer with what its forward pass gave on the way.

    Args:
        activations: `(N, *layer_shape)`, the layer's values.
        gradient: `(N, *layer_shape)`, of each row's objective with respect to those.
        objective: `(N,)`, the target's value.
        logits: `(N, K)`, where the target is a class or another unit of the logits.
        through: `(N, *input_shape)`, the part of the objective's gradient with respect to the input
            that flows through the layer's values, or through those of a mask.
    """

    activations: Tensor
    gradient: Tensor
    objective: Tensor
    logits: Tensor | None
    through: Tensor | None = None


def layer_gradient(
    model: Classifier, x: Tensor, layer: str, targets: Targets, mask: Tensor | None = None
) -> LayerGradient:
    """Each row's objective differentiated by a layer's values, in one forward and backward pass.

    It is zero where the target does not depend on the layer.

    Args:
        model: with gradients and readable layers.
        x: `(N, *input_shape)`; left as it was.
        layer: the layer's name.
        targets: one per row.
        mask: `layer_shape`, 1 where gradients may flow on to the input, else 0; None to spare that.
    """
    plans = model.plans
    form = plans.layers((model.layer(layer).node, _end(model, targets.layer)), model.example)
    return _gradient(model, form, x, targets, mask=mask)


class After:
    """The part of a network between a layer and a target, run on values given for that layer.

    What passes the layer by is computed from the inputs.

    Args:
        model: with gradients and readable layers.
        layer: the layer's name.
        target: the layer in which the target lies; None for the logits.
    """

    def __init__(self, model: Classifier, layer: str, target: str | None) -> None:
        self._model = model
        graph = _continued(model, model.layer(layer).node, _end(model, target))
        body = model.plans.body
        self._form = body.around(graph) if isinstance(body, InGroups) else graph

    def gradient(self, x: Tensor, values: Tensor, targets: Targets) -> LayerGradient:
        """Each row's objective differentiated by the layer's values, at these values.

        Args:
            x: `(N, *input_shape)`.
            values: `(N, *layer_shape)`, what the layer is taken to give.
            targets: one per row.
        """
        return _gradient(self._model, self._form, x, targets, values=values)


def _continued(model: Classifier, layer: str, end: str) -> fx.GraphModule:
    """From inputs and a node's values to those of a later node."""
    graph = model.plans.graph
    assert graph is not None  # layers can be read
    copy, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.graph.nodes:
        if node.name == layer:
            copied[node] = copy.placeholder("given")
        else:
            copied[node] = copy.node_copy(node, copied.__getitem__)
        if node.name == end:
            copy.output(copied[node])
            break
    module = fx.GraphModule(graph, copy)
    if not any(map(writes, module.graph.nodes)):
        module.graph.eliminate_dead_code()
        module.recompile()
    return module


def _gradient(
    model: Classifier,
    form: torch.nn.Module,
    x: Tensor,
    targets: Targets,
    *,
    values: Tensor | None = None,
    mask: Tensor | None = None,
) -> LayerGradient:
    if not isinstance(form, InGroups):
        return _of_rows(model, form, x, targets, 0, values, mask)
    parts = []
    for start in range(0, len(x), form.size):  # joined rows are no longer what the target saw
        part = slice(start, start + form.size)
        missing = max(0, start + form.size - len(x))
        filled = _filled(x[part], missing)
        given = None if values is None else _filled(values[part], missing)
        taken = targets.take(part)
        parts.append(_of_rows(model, form.body, filled, taken, missing, given, mask))
    activations, gradients, objectives, logits, through = zip(*parts, strict=True)
    return LayerGradient(
        torch.cat(activations),
        torch.cat(gradients),
        torch.cat(objectives),
        None if targets.layer is not None else torch.cat(logits),
        None if mask is None else torch.cat(through),
    )


def _filled(rows: Tensor, missing: int) -> Tensor:
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


def _of_rows(
    model: Classifier,
    form: torch.nn.Module,
    x: Tensor,
    targets: Targets,
    filling: int,
    values: Tensor | None,
    mask: Tensor | None,
) -> LayerGradient:
    """The same of rows that run together, of which the last `filling` are not asked for."""
    count = len(x) - filling
    leaf = x.detach().clone().requires_grad_()
    given = None if values is None else values.detach().clone().requires_grad_()
    read: list[Tensor] = []

    def run(rows: Tensor) -> tuple[Tensor, ...]:
        if given is None:
            found: tuple[Tensor, ...] = form(rows)
        else:
            found = given, form(rows, given.clone())  # which the network may write to
        read.append(found[0])  # before its type is widened, which makes another tensor
        return found

    with torch.enable_grad():
        activations, last = model.module.compute(run, leaf)
        if targets.layer is None:
            last = last if last.dim() and len(last) == len(x) else last[None]
            last = model.module.head(last)
        objective = targets.select(last[:count])
        gradient = torch.zeros_like(activations)
        through = None if mask is None else torch.zeros_like(leaf)
        if read[0].requires_grad and objective.requires_grad:
            (found,) = torch.autograd.grad(
                objective.sum(),
                read[0],
                allow_unused=True,
                materialize_grads=True,
                retain_graph=mask is not None,
            )
            gradient = found.to(activations.dtype)
            if mask is not None:
                (through,) = torch.autograd.grad(
                    read[0], leaf, found * mask, allow_unused=True, materialize_grads=True
                )
    return LayerGradient(
        activations.detach()[:count],
        gradient.detach()[:count],
        objective.detach(),
        last.detach()[:count] if targets.layer is None else None,
        None if through is None else through.detach()[:count],
    )


class Way:
    """The part of a network that lies between its input and a target.

    Only values that pass gradients count: sizes and integers that the network reads off its input
    are no way to the target.

    Args:
        model: with readable layers.
        target: a layer's name; None for the logits.

    Attributes:
        layers: those that lead to the target, in order of execution, without the target itself.
        crossed: the names of those of them that every path to the target crosses.
        sources: layer name -> the layers that it is computed from with no other layer between.
    """

    def __init__(self, model: Classifier, target: str | None) -> None:
        nodes = _between(model, _end(model, target))
        self._position = {node.name: index for index, node in enumerate(nodes)}
        known = [item for item in model.layers.values() if item.node in self._position]
        known.sort(key=lambda item: self._position[item.node])
        last = len(nodes) - 1
        self.layers: tuple[Layer, ...] = tuple(
            item for item in known if self._position[item.node] != last
        )
        farthest, single = 0, set()
        for index, node in enumerate(nodes):
            if farthest <= index:  # no edge leads past it
                single.add(node.name)
            for user in node.users:
                farthest = max(farthest, self._position.get(user.name, 0))
        self.crossed = frozenset(item.name for item in self.layers if item.node in single)
        self.sources = _sources(nodes, self.layers)

    def after(self, layer: Layer) -> tuple[Layer, ...]:
        """The layers between one and the target."""
        start = self._position[layer.node]
        return tuple(item for item in self.layers if self._position[item.node] > start)


def _sources(nodes: Sequence[fx.Node], layers: Sequence[Layer]) -> dict[str, frozenset[str]]:
    names: dict[str, set[str]] = {}  # a node may be several modules' value
    for layer in layers:
        names.setdefault(layer.node, set()).add(layer.name)
    seen: dict[fx.Node, frozenset[str]] = {}  # the layers that a node's users see through it
    sources = {}
    for node in nodes:
        found = frozenset().union(*(seen.get(item, frozenset()) for item in node.all_input_nodes))
        own = frozenset(names.get(node.name, ()))
        sources.update(dict.fromkeys(own, found))
        seen[node] = own or found
    return sources


def _between(model: Classifier, end: str) -> list[fx.Node]:
    """The nodes on any path from the input to a node, that node included, in order."""
    graph = model.plans.graph
    assert graph is not None  # layers can be read
    observed = model.plans.observed(model.example)

    def carries(node: fx.Node) -> bool:
        if node.meta.get("kind") == "constant":  # made at the size, or on the device, of a value
            return False
        seen = observed.get(node.name)
        if seen is None:
            return True
        return not seen.plain and (seen.dtype is None or seen.dtype.is_floating_point)

    dependent: set[fx.Node] = set()
    for node in graph.graph.nodes:
        reached = node.op == "placeholder" or dependent.intersection(node.all_input_nodes)
        if reached and carries(node):
            dependent.add(node)
        if node.name == end:
            break
    needed: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        if node.name == end or needed.intersection(node.users):
            needed.add(node)
    return [node for node in graph.graph.nodes if node in dependent and node in needed]


def _end(model: Classifier, target: str | None) -> str:
    return model.plans.last if target is None else model.layer(target).node
