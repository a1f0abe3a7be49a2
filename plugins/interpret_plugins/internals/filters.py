"""Weights as pictures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    Inputs,
    InvalidRequest,
    Job,
    Kind,
    Params,
    Plugin,
    TargetKind,
    metric,
    output,
)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)
# Layers after which the values of a row are still in the order in which they were.
_ORDERED = frozenset(
    {"alphadropout", "contiguous", "dropout", "flatten", "identity", "reshape", "squeeze",
     "unflatten", "unsqueeze", "view"}
)  # fmt: skip


class FiltersParams(Params):
    pass


@dataclass(frozen=True)
class FiltersResult:
    filters: Tensor = output(
        "The weights of the target's channel over the largest of their magnitudes, in [-1, 1]: "
        "`(N, *filter)`; of a whole layer each of its filters, `(N, F, *filter)`.",
        like_input=False,
    )
    weights: Tensor = output("The same as they are.", like_input=False)
    norm: Tensor = metric("Root of the sum of their squares.")


class Filters(Plugin[FiltersParams, FiltersResult]):
    """The weights that make a channel of a convolution or linear layer, as a picture.

    A target names a `channel` and gives its filter, or a `layer` alone and gives all of its
    filters; a class gives its row of the layer that computes the logits, the template that the
    class is matched with. A filter of a convolution has the shape `(C / groups, *kernel)`; one of a
    linear layer that reads a flattened image or map has the shape of that image or map. Weights are
    those of the file, which act on normalised inputs. No input is needed.

    Source: Krizhevsky, Sutskever & Hinton 2012, "ImageNet Classification with Deep Convolutional
    Neural Networks", figure 3.
    """

    name = "filters"
    kind = Kind.INTERNALS
    requires = frozenset({Capability.LAYERS})
    inputs = Inputs.FORBIDDEN
    target_kinds = frozenset({TargetKind.CLASS, TargetKind.CHANNEL, TargetKind.LAYER})

    def run(
        self, model: Classifier, batch: Batch, params: FiltersParams, job: Job
    ) -> FiltersResult:
        targets = batch.targets
        for _ in job.track(1):
            weights = _weights(model, targets.layer)
            if targets.kind is TargetKind.LAYER:
                chosen = weights.expand(len(batch), *weights.shape).clone()
                each = weights.flatten(1).abs().amax(1)
            else:
                chosen = weights[targets.index[:, 0]]
                each = chosen.flatten(1).abs().amax(1)
            largest = torch.where(each > 0, each, 1).reshape(-1, *(1,) * (weights.dim() - 1))
        return FiltersResult(chosen / largest, chosen, chosen.flatten(1).norm(dim=1))


def _weights(model: Classifier, layer: str | None) -> Tensor:
    """One filter for every channel of a layer, or for every class: `(F, *filter)`."""
    found = _weighted(model)
    if layer is None:
        node = next((node for node in found if node.name == model.plans.last), None)
        if node is None or _filters(found[node]).shape[0] != model.classes:
            raise InvalidRequest.field(
                "target",
                f"the logits of {model.name} do not come from one linear layer; name a layer with "
                f"weights: {_named(model, found)}",
            )
    else:
        named = model.layer(layer).node
        node = next((node for node in found if node.name == named), None)
        if node is None:
            raise InvalidRequest.field(
                "target",
                f"layer {layer!r} has no weights of its own; those that have: "
                f"{_named(model, found)}",
            )
    module, filters = found[node], _filters(found[node])
    if isinstance(module, nn.Linear):
        shape = _source_shape(model, node)
        if math.prod(shape) == filters.shape[1]:
            filters = filters.reshape(len(filters), *shape)
    return filters.detach().to(model.device, model.dtype)


def _filters(module: nn.Module) -> Tensor:
    weight: Tensor = module.weight  # type: ignore[assignment]
    if not isinstance(module, _TRANSPOSED):
        return weight
    groups = int(module.groups)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])  # (groups, in, out, *kernel)
    return grouped.transpose(1, 2).flatten(0, 1)


def _weighted(model: Classifier) -> Mapping[fx.Node, nn.Module]:
    graph = model.plans.graph
    assert graph is not None  # layers can be read
    modules = dict(graph.named_modules())
    return {
        node: modules[str(node.target)]
        for node in graph.graph.nodes
        if node.op == "call_module" and isinstance(modules[str(node.target)], _WEIGHTED)
    }


def _named(model: Classifier, found: Mapping[fx.Node, nn.Module]) -> str:
    nodes = {node.name for node in found}
    names = [layer.name for layer in model.layers.values() if layer.node in nodes]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(names[:12]) or "none") + more


def _source_shape(model: Classifier, node: fx.Node) -> tuple[int, ...]:
    """The shape of the row that a linear layer reads, before it was flattened."""
    kinds = {layer.node: layer.kind for layer in model.layers.values()}
    source = node.all_input_nodes[0]
    while kinds.get(source.name) in _ORDERED:
        source = source.all_input_nodes[0]
    if source.op == "placeholder":
        return model.input_shape
    seen = model.plans.observed(model.example).get(source.name)
    return () if seen is None or seen.shape is None else seen.shape[1:]
