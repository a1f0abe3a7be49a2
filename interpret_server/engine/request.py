"""Calls after decoding: everything checked, nothing queued yet."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..models.classifier import Classifier
from ..models.manifest import Precision
from ..plugin import Batch, Rows
from ..registry import AnyPlugin, Registration
from .api import Call, ModelInfo
from .occupancy import Occupancy
from .sizes import MAX_STEP_SECONDS, BatchSizes
from .stored import ModelFiles
from .transfers import upload


@dataclass(eq=False)
class Served:
    """A loaded model, the calls that hold it, and what its batches have shown.

    Args:
        max_step: seconds that a step of a batch should take at most.
        files: that it was loaded from, if any.
    """

    classifier: Classifier
    info: ModelInfo
    max_step: float = MAX_STEP_SECONDS
    files: ModelFiles | None = None
    users: Occupancy = field(default_factory=Occupancy)
    sizes: BatchSizes = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = BatchSizes(self.max_batch, self.max_step)

    @property
    def max_batch(self) -> int:
        """Most rows in one forward pass."""
        return max(1, self.info.max_batch)


@dataclass(frozen=True, eq=False)
class Request:
    """A checked call.

    Args:
        call: as the caller wrote it.
        served: the model that answers it, whatever is loaded under its name later.
        registration: the plugin.
        params: the plugin's parameters.
        params_json: the same with every default filled in.
        batch: on the CPU unless there were no inputs; its inputs are as callers send them, to be
            encoded when they run.
        predict: the targets are the predicted classes, not yet known.
        methods: by name, the plugins that the parameters name.
        models: the second models, by role.
        key: calls with equal keys may share a batch.
        sizes: what bounds its batches: those that the model has shown, or of a call that runs
            alone nothing but what its own rows show of the memory.
    """

    call: Call
    served: Served
    registration: Registration
    params: Any
    params_json: str
    batch: Batch
    predict: bool
    methods: Mapping[str, AnyPlugin]
    models: Mapping[str, Served] = field(default_factory=dict)
    key: Hashable = field(init=False)
    sizes: BatchSizes = field(init=False)
    nbytes: int = field(init=False)  # of inputs, auxiliary tensors and directions

    def __post_init__(self) -> None:
        own = BatchSizes(self.served.max_batch, math.inf) if self.call.alone else None
        object.__setattr__(self, "sizes", own or self.served.sizes)
        object.__setattr__(self, "key", self._key())
        direction = self.batch.targets.direction
        tensors = [self.batch.inputs, *self.batch.tensors.values()]
        tensors += [] if direction is None else [direction]
        object.__setattr__(self, "nbytes", sum(tensor.nbytes for tensor in tensors))

    @property
    def plugin(self) -> AnyPlugin:
        """The plugin that answers it."""
        return self.registration.plugin

    @property
    def rows(self) -> int:
        """How many examples."""
        return len(self.batch)

    @property
    def kind(self) -> Hashable:
        """What `BatchSizes` tells apart."""
        names = (self.plugin.name, *sorted(self.methods))
        seconds = tuple(sorted((role, item.info.name) for role, item in self.models.items()))
        return names, seconds, tuple(self.batch.inputs.shape[1:])

    @property
    def max_rows(self) -> int:
        """Most rows that should run at once, as far as is known."""
        limits = [second.max_batch for second in self.models.values()]
        return min([self.sizes.rows(self.kind), *limits])

    @property
    def precision(self) -> Precision:
        """Of what it computes: the finest of its models."""
        found = {item.classifier.precision for item in (self.served, *self.models.values())}
        return found.pop() if len(found) == 1 else Precision.FLOAT32

    def _key(self) -> Hashable:
        if self.call.alone or self.plugin.rows is not Rows.INDEPENDENT:
            return object()
        targets, tensors = self.batch.targets, self.batch.tensors
        direction = targets.direction
        return (
            id(self.served),
            tuple(sorted((role, id(second)) for role, second in self.models.items())),
            self.registration.plugin.name,
            self.params_json,
            self.batch.has_inputs,
            tuple(self.batch.inputs.shape[1:]),
            targets.kind,
            targets.layer,
            None if direction is None else tuple(direction.shape[1:]),
            tuple((name, tuple(tensors[name].shape[1:])) for name in sorted(tensors)),
        )


def join(batches: list[Batch]) -> Batch:
    """The rows of alike batches, one after the other."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    targets = [batch.targets for batch in batches]
    directions = [item.direction for item in targets if item.direction is not None]
    return Batch(
        inputs=torch.cat([batch.inputs for batch in batches]),
        targets=type(first.targets)(
            first.targets.kind,
            torch.cat([item.index for item in targets]),
            first.targets.layer,
            torch.cat(directions) if directions else None,
        ),
        seeds=tuple(seed for batch in batches for seed in batch.seeds),
        tensors={
            name: torch.cat([batch.tensors[name] for batch in batches]) for name in first.tensors
        },
        has_inputs=first.has_inputs,
    )


def take(batch: Batch, rows: range, *, classifier: Classifier, as_sent: bool = False) -> Batch:
    """Some rows of a batch, encoded, on the classifier's device.

    Args:
        rows: one after the other.
        as_sent: leave the inputs on the CPU as callers send them.
    """
    part = slice(rows.start, rows.stop)
    device, inputs = classifier.device, batch.inputs[part]
    if not as_sent:
        inputs = upload(classifier.encode(inputs) if batch.has_inputs else inputs, device)
    return Batch(
        inputs=inputs,
        targets=batch.targets.take(part).to(device),
        seeds=batch.seeds[part],
        tensors={name: upload(tensor[part], device) for name, tensor in batch.tensors.items()},
        has_inputs=batch.has_inputs,
    )
