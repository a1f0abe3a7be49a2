"""The classifiers and requests that the conformance suite tries plugins on."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FailedPrecondition
from ..models.classifier import Capability, Classifier, Gradient
from ..models.relu_rules import ReluRule
from ..models.targets import TargetKind, Targets
from ..noise import generator
from ..plugin import Batch, Inputs, Plugin
from .classifiers import classifier

CLASSES = 4


def _layers(*modules: nn.Module) -> nn.Sequential:
    network = nn.Sequential(*modules)
    source = generator(20, 0)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            values = torch.randn(parameter.shape, generator=source) * math.sqrt(2 / fan_in)
            parameter.copy_(values)
    return network


def subjects() -> tuple[Classifier, ...]:
    """Small classifiers, the same every time: images of three and of one channel, flat, signals.

    They differ in bounds and in floating-point type too, and one takes images of any size.
    """
    with torch.random.fork_rng(devices=[]):
        colour = _layers(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, CLASSES),
        )
        grey = _layers(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, CLASSES)).double()
        flat = _layers(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 9), nn.ReLU(), nn.Linear(9, 4))
        signal = _layers(
            nn.Conv1d(2, 5, 3), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(35, CLASSES)
        ).double()
        pooled = _layers(
            nn.Conv2d(3, 6, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, CLASSES),
        ).double()
    free = classifier(pooled, (3, 8, 8), name="images_of_any_size", input_layout="CHW")
    free.input_sizes = (3, None, None)
    return (
        classifier(colour, (3, 8, 8), name="colour_images", input_layout="CHW"),
        classifier(grey, (1, 6, 6), bounds=(-1, 1), name="grey_images", input_layout="CHW"),
        classifier(flat, (12,), bounds=(-3, 5), name="flat_inputs"),
        classifier(signal, (2, 16), bounds=(0, 4), name="signals", input_layout="CL"),
        free,
    )


class Bare(Classifier):
    """A classifier that offers some capabilities of another, and refuses every other use."""

    def __init__(self, whole: Classifier, offered: frozenset[Capability]) -> None:
        lacking = {
            capability: f"the plugin does not require {capability}"
            for capability in Capability
            if capability not in offered
        }
        super().__init__(
            whole.name,
            whole.module,
            input_shape=whole.input_shape,
            classes=whole.classes,
            capabilities=offered & whole.capabilities,
            lacking=lacking,
            bounds=whole.bounds if Capability.BOUNDS in offered else None,
            layers=whole.layers if Capability.LAYERS in offered else None,
            input_layout=whole.input_layout,
            dtype=whole.dtype,
            device=whole.device,
            input_sizes=whole.input_sizes,
        )

    def __call__(self, x: Tensor) -> Tensor:
        logits = super().__call__(x)
        return logits if Capability.GRADIENT in self.capabilities else logits.detach()

    def gradient(self, x: Tensor, targets: Targets, rule: ReluRule = ReluRule.PLAIN) -> Gradient:
        needed = [Capability.GRADIENT]
        if rule is not ReluRule.PLAIN:
            needed.append(Capability.RECTIFIERS)
        for capability in needed:
            if capability not in self.capabilities:
                raise FailedPrecondition(self.lacking[capability])
        return super().gradient(x, targets, rule)


def targets_of(kind: TargetKind, model: Classifier, rows: int, layer: str | None) -> Targets:
    """Valid targets of a kind, different in every row; `layer` None means the logits."""
    shape = (model.classes,) if layer is None else model.layers[layer].shape
    counter = torch.arange(rows).unsqueeze(1)
    match kind:
        case TargetKind.NONE:
            return Targets.none(rows)
        case TargetKind.CLASS:
            return Targets.classes(torch.arange(rows) % model.classes)
        case TargetKind.CHANNEL:
            return Targets(kind, counter % shape[0], layer)
        case TargetKind.NEURON:
            return Targets(kind, torch.cat([counter % size for size in shape], 1), layer)
        case TargetKind.LAYER:
            return Targets(kind, torch.zeros(rows, 0, dtype=torch.int64), layer)
        case TargetKind.DIRECTION:
            vectors = torch.randn(rows, shape[0], generator=generator(21, 0), dtype=torch.float64)
            index = torch.zeros(rows, 0, dtype=torch.int64)
            return Targets(kind, index, layer, vectors.to(model.dtype))


def targets_to_try(kind: TargetKind, model: Classifier, rows: int) -> list[Targets]:
    """Targets of a kind, first in a hidden layer where it may lie in one, then in the logits."""
    if kind in (TargetKind.NONE, TargetKind.CLASS):
        return [targets_of(kind, model, rows, None)]
    hidden = list(model.layers)[1:2] if Capability.LAYERS in model.capabilities else []
    return [targets_of(kind, model, rows, layer) for layer in (*hidden, None)]


def inputs_of(
    model: Classifier, rows: int, stream: int = 0, *, example_sizes: bool = False
) -> Tensor:
    """Uniform inputs within the bounds; within 0 and 1 where the model states none.

    Free sizes are larger than those of the model's example, unless these are asked for.
    """
    lower, upper = model.bounds if Capability.BOUNDS in model.capabilities else (0.0, 1.0)
    sizes = zip(model.input_shape, model.input_sizes, strict=True)
    shape = [
        size if known is not None or example_sizes else size + 1 + axis
        for axis, (size, known) in enumerate(sizes)
    ]
    share = torch.rand(rows, *shape, generator=generator(22, stream))
    return (lower + share * (upper - lower)).to(model.dtype)


def batch_of(
    plugin: Plugin[Any, Any],
    model: Classifier,
    targets: Targets,
    tensors: Callable[[Classifier, int], Mapping[str, Tensor]] | None,
) -> Batch:
    """A request as the server would make it."""
    rows = len(targets)
    brought = dict(tensors(model, rows)) if tensors else {}
    for stream, (name, tensor) in enumerate(plugin.tensors.items(), start=1):
        if tensor.required and tensor.like_input and name not in brought:
            brought[name] = inputs_of(model, rows, stream, example_sizes=bool(tensors))
    has_inputs = plugin.inputs is not Inputs.FORBIDDEN
    made = bool(tensors)  # by somebody who knows of the example's sizes alone
    inputs = inputs_of(model, rows, example_sizes=made) if has_inputs else model.neutral(rows)
    return Batch(inputs, targets, tuple(range(101, 101 + rows)), brought, has_inputs)


def take(batch: Batch, rows: list[int]) -> Batch:
    """Some rows of a batch, in that order."""
    index = torch.tensor(rows)
    return replace(
        batch,
        inputs=batch.inputs[index],
        targets=batch.targets.take(index),
        seeds=tuple(batch.seeds[row] for row in rows),
        tensors={name: tensor[index] for name, tensor in batch.tensors.items()},
    )


def copy_of(batch: Batch) -> Batch:
    """The same rows in tensors of their own."""
    return take(batch, list(range(len(batch))))
