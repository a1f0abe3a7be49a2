"""A private copy of a classifier, whose weights are made random layer by layer."""

import copy
from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, fx, nn

from interpret_server.noise import generator
from interpret_server.plugin import Classifier

# What brings inputs to the form that a network was trained on; its constants were not learnt.
_PREPARING = frozenset(
    {
        "add", "sub", "rsub", "mul", "div", "true_divide", "to", "to_dtype", "cast", "getitem",
        "select", "slice", "index", "index_select", "gather", "flip", "cat", "concat", "stack",
        "clone", "contiguous", "permute", "transpose", "unsqueeze", "squeeze", "view", "reshape",
    }
)  # fmt: skip


def weighted_layers(model: Classifier) -> dict[str, tuple[str, ...]]:
    """The layers that have weights, in order of execution, each with the names of its weights.

    Names of weights are those in `model.module`'s state; what several layers share belongs to the
    first. The constants by which inputs are normalised are no weights. Empty where the network's
    weights are out of reach.
    """
    tensors, firsts = _tensors(model.module), _firsts(model.module)
    body = model.module.body
    groups = (
        _by_node(model, body, tensors) if isinstance(body, fx.GraphModule) else _by_module(tensors)
    )
    shown = _shown(model)
    found: dict[str, tuple[str, ...]] = {}
    for place, names in groups.items():
        own = tuple(name for name in names if firsts[name] == name and tensors[name].numel() > 1)
        if own:
            layer = shown.get(place, place)
            found[layer] = found.get(layer, ()) + own
    return found


class Twin:
    """A classifier with weights of its own, the same as the served one's to begin with.

    Args:
        model: that is copied; nothing of it ever changes.
        how: `permute` shuffles the values of each tensor of weights; `normal` draws them from the
            normal distribution of their mean and standard deviation.
        seed: of the random weights.
    """

    def __init__(self, model: Classifier, how: Literal["permute", "normal"], seed: int) -> None:
        self._model, self._how, self._seed = model, how, seed
        self._module = copy.deepcopy(model.module)  # parts what layers share
        self._firsts = _firsts(model.module)
        self._places = {name: place for place, name in enumerate(self._firsts)}

    @torch.no_grad()
    def randomise(self, names: Collection[str]) -> None:
        """Make some weights random, and those shared with them; the same every time."""
        for name, weight in _tensors(self._module).items():
            first = self._firsts[name]
            if first in names:
                weight.copy_(self._random(weight, self._places[first]))

    @torch.no_grad()
    def restore(self, names: Collection[str]) -> None:
        """Give some weights, and those shared with them, their served values again."""
        served = _tensors(self._model.module)
        for name, weight in _tensors(self._module).items():
            if self._firsts[name] in names:
                weight.copy_(served[name])

    def classifier(self) -> Classifier:
        """It as it is now; ask again after a change, for faster forms hold weights of their own."""
        twin = copy.copy(self._model)
        twin.module = self._module
        twin.execution = twin.execution
        return twin

    def _random(self, weight: Tensor, place: int) -> Tensor:
        source = generator(self._seed, place)
        if self._how == "permute":
            order = torch.randperm(weight.numel(), generator=source)
            return weight.flatten()[order.to(weight.device)].reshape(weight.shape)
        drawn = torch.randn(weight.shape, generator=source).to(weight)
        return drawn * weight.std(correction=0) + weight.mean()


def _shown(model: Classifier) -> dict[str, str]:
    """Layer names by node; of a node that is none (a cell of several outputs), its first user's."""
    named = {layer.node: name for name, layer in model.layers.items()}
    if isinstance(model.module.body, fx.GraphModule):
        for node in model.module.body.graph.nodes:
            users = [user.name for user in node.users if user.name in named]
            if node.name not in named and users:
                named[node.name] = named[users[0]]
    return named


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    found = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: item for name, item in found.items() if item.is_floating_point()}


def _firsts(module: nn.Module) -> dict[str, str]:
    """Of every tensor, the first one that holds the same values in the same place."""
    seen: dict[tuple[object, ...], str] = {}
    return {
        name: seen.setdefault((item.data_ptr(), item.shape, item.stride()), name)
        for name, item in _tensors(module).items()
    }


def _by_node(
    model: Classifier, body: fx.GraphModule, tensors: Mapping[str, Tensor]
) -> dict[str, list[str]]:
    """Names of tensors by the node that uses them first, in order."""
    prepared = _prepared(model, body)
    parameters = [name for name, item in tensors.items() if isinstance(item, nn.Parameter)]
    found: dict[str, list[str]] = {node.name: [] for node in body.graph.nodes}
    for node in body.graph.nodes:
        name = f"body.{node.target}"
        if node.op == "call_module":
            found[node.name] += [item for item in parameters if item.startswith(f"{name}.")]
        # Masks are constants too, and hold infinities.
        elif node.op == "get_attr" and name in tensors and tensors[name].isfinite().all():
            user = next(iter(node.users), node)
            if user not in prepared:
                found[user.name].append(name)
    return {place: names for place, names in found.items() if names}


def _prepared(model: Classifier, body: fx.GraphModule) -> set[fx.Node]:
    """The inputs, and what is made of them and of constants alone, value by value."""
    kinds = {layer.node: layer.kind for layer in model.layers.values()}
    found: set[fx.Node] = set()
    for node in body.graph.nodes:
        operation = kinds.get(node.name) or str(getattr(node.target, "__name__", node.target))
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        prepares = operation.partition(".")[0] in _PREPARING and sources
        if node.op == "placeholder" or (prepares and found.issuperset(sources)):
            found.add(node)
    return found


def _by_module(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names of parameters by their module, in the order in which modules were made."""
    found: dict[str, list[str]] = {}
    for name, item in tensors.items():
        if isinstance(item, nn.Parameter):
            found.setdefault(name.rpartition(".")[0].removeprefix("body."), []).append(name)
    return found
