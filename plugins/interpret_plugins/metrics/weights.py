"""A private copy of a classifier, whose weights are made random layer by layer."""

import copy
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, fx, nn

from interpret_server.noise import generator
from interpret_server.plugin import Classifier


def weighted_layers(model: Classifier) -> dict[str, tuple[str, ...]]:
    """The layers that have weights, in order of execution, each with the names of its weights.

    Names of weights are those of `model.module`'s parameters; what several layers share belongs to
    the first. Empty where the network's weights are out of reach.
    """
    modules: dict[str, list[str]] = {}
    firsts = _firsts(model.module)
    for name, parameter in model.module.named_parameters():
        if firsts[name] == name and parameter.is_floating_point() and parameter.numel() > 1:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
    nodes = _nodes(model.module.body)
    named = {layer.node: name for name, layer in model.layers.items()}
    order = {module: place for place, module in enumerate(nodes)}
    found = {}
    for module in sorted(modules, key=lambda module: order.get(module, -1)):
        shown = named.get(nodes.get(module, ""), module.removeprefix("body."))
        found[shown or module] = tuple(modules[module])
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
        for name, weight in self._module.named_parameters():
            first = self._firsts[name]
            if first in names:
                weight.copy_(self._random(weight, self._places[first]))

    @torch.no_grad()
    def restore(self, names: Collection[str]) -> None:
        """Give some weights, and those shared with them, their served values again."""
        served = dict(self._model.module.named_parameters())
        for name, weight in self._module.named_parameters():
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


def _firsts(module: nn.Module) -> dict[str, str]:
    """Of every parameter, the first one that holds the same values in the same place."""
    seen: dict[tuple[object, ...], str] = {}
    return {
        name: seen.setdefault((item.data_ptr(), item.shape, item.stride()), name)
        for name, item in module.named_parameters()
    }


def _nodes(body: nn.Module) -> dict[str, str]:
    """The first node that uses each submodule of a graph, by the submodule's name, in order."""
    found: dict[str, str] = {}
    if isinstance(body, fx.GraphModule):
        for node in body.graph.nodes:
            if node.op == "call_module":
                found.setdefault(f"body.{node.target}", node.name)
            elif node.op == "get_attr":
                found.setdefault(f"body.{node.target}".rpartition(".")[0], node.name)
    return found
