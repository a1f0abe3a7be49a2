"""One form for every model: `classifier(x) -> logits`, with its layers readable and targetable."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from ..errors import FailedPrecondition, InvalidRequest
from .execution import Execution, Nearby, Plans, Work, recorder_of
from .manifest import Precision
from .network import ClassifierModule
from .packing import Packing
from .relu_rules import ReluRule, relu_rule
from .targets import TargetKind, Targets
from .traits import Bounds, Capability, Gradient, Layer

if TYPE_CHECKING:
    from .answers import FileAnswers

__all__ = ["Bounds", "Capability", "Classifier", "Gradient", "Layer"]

_SHAPES = 256  # shapes of layers kept per model


class Classifier:
    """A model as plugins see it. All tensors are on `device`, in `dtype`.

    Args:
        name: the name it is served under.
        module: from inputs `(N, *input_shape)` in the model's bounds to logits `(N, K)`; of a
            network that is no classifier, to the K values of each row in one axis.
        input_shape: of one row; of an example, where sizes are free.
        classes: K.
        capabilities: what plugins may ask of it.
        lacking: capability -> why it is absent, one sentence.
        bounds: smallest and largest input value; None where the manifest does not say.
        mean: the manifest's mean, broadcastable to a row, or None.
        layers: by name, in order of execution.
        input_layout: `CHW`, `HWC`, `CL` or `other`.
        labels: names of the classes, or None.
        sha256: of the file.
        input_sizes: the input's shape, with None where a size is free; empty where none is.
        encoder: from callers' rows, on the CPU, to inputs; None where they are the same.
        packing: of several values in a row, or None.
        carried: `(1, *input_shape)`, a row whose masks, lengths and the like a neutral input has.

    Attributes:
        guard: why the file's program takes other steps at the size of some of callers' rows; None
            where it takes the same.
        answers: what the file itself answers to callers' rows; None where nothing runs it.
    """

    def __init__(
        self,
        name: str,
        module: ClassifierModule,
        *,
        input_shape: tuple[int, ...],
        classes: int,
        capabilities: frozenset[Capability],
        lacking: Mapping[Capability, str],
        bounds: Bounds | None,
        mean: Tensor | None = None,
        layers: Mapping[str, Layer] | None = None,
        input_layout: str = "other",
        labels: tuple[str, ...] | None = None,
        sha256: str = "",
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        execution: Execution = Execution.AUTO,
        input_sizes: tuple[int | None, ...] = (),
        encoder: nn.Module | None = None,
        packing: Packing | None = None,
        carried: Tensor | None = None,
    ) -> None:
        self.name, self.module, self.input_shape, self.classes = name, module, input_shape, classes
        self.capabilities, self.lacking = capabilities, dict(lacking)
        self.layers: Mapping[str, Layer] = layers or {}
        self.input_layout, self.labels, self.sha256 = input_layout, labels, sha256
        self.dtype, self.device = dtype, device or torch.device("cpu")
        self.input_sizes = input_sizes or input_shape
        self.packing = packing
        self._carried = carried
        self._encoder = encoder
        self.guard: Callable[[Tensor], str | None] | None = None
        self.answers: FileAnswers | None = None
        self._sizes: OrderedDict[tuple[int, ...], str | None] = OrderedDict()
        self._bounds, self._mean = bounds, mean
        self._shapes: OrderedDict[tuple[str, tuple[int, ...]], tuple[int, ...]] = OrderedDict()
        self._execution = execution
        self._prepare()

    def _prepare(self) -> None:
        self._body = self.module.body
        self._recorder = recorder_of(self.device) if self._execution is Execution.RECORDED else None
        self._plans = Plans(self.module, self._body, self._execution, recorder=self._recorder)
        self._fast_plans: Plans | None = None

    def example(self) -> Tensor:
        """Two rows as the body takes them."""
        example: Tensor = self.module.normalise(self.neutral(2))
        return example

    @property
    def execution(self) -> Execution:
        """How much the form that runs may differ from `module`, which stays as it is."""
        return self._execution

    @execution.setter
    def execution(self, execution: Execution) -> None:
        self._execution = execution
        self._prepare()

    @property
    def scout(self) -> Self:
        """The same classifier in its fastest form, which rounds otherwise, for long searches.

        What they find is to be judged by the classifier itself, which this is where no form is
        faster, or where its bits are to be exact. Not to be used under a rule for rectifiers.
        """
        plans = self.plans
        if self._fast_plans is None:
            fast = Plans(
                self.module, self._body, Execution.FAST, plain=True, recorder=self._recorder
            )
            faster = fast.channels_last and self._execution is not Execution.EXACT
            self._fast_plans = fast if faster else plans
        if self._fast_plans is plans:
            return self
        scout = copy.copy(self)
        scout._plans = self._fast_plans
        return scout

    def nearby(self) -> Nearby:
        """The logits of points that change a window at a time, computed where they change.

        For searches, as `scout` is: they may round otherwise than the classifier's own.
        """
        return Nearby(self)

    @property
    def precision(self) -> Precision:
        """Of matrix products and convolutions; all that goes in and comes out has `dtype`."""
        return self.module.precision

    @precision.setter
    def precision(self, precision: Precision) -> None:
        self.module.precision = precision
        self._prepare()  # plans depend on the types of the values in between

    @property
    def plans(self) -> Plans:
        """The forms in which the body runs."""
        if self.module.body is not self._body:  # somebody put another one in its place
            self._prepare()
        return self._plans

    def __call__(self, x: Tensor) -> Tensor:
        """Logits `(N, K)` of inputs `(N, *input_shape)`; differentiable.

        Raises:
            RuntimeError: the network does not run on these, or gives something of another shape.
        """
        module, plans = self.module, self.plans
        if plans.hooked:
            logits: Tensor = module(x)
        else:
            (logits,) = self._run("logits", self._compute_logits, x)
        if logits.shape != (len(x), self.classes):
            raise RuntimeError(
                f"it gives logits of shape {list(logits.shape)} for {len(x)} rows, and not "
                f"{self.classes} for each"
            )
        return logits

    def withhold(self, capability: Capability, why: str) -> None:
        """Take a capability away, for the reason that callers are told."""
        self.capabilities -= {capability}
        self.lacking[capability] = why

    def accepts(self, shape: Sequence[int]) -> bool:
        """Whether a row may have this shape."""
        return len(shape) == len(self.input_sizes) and all(
            known in (None, size) and size > 0
            for known, size in zip(self.input_sizes, shape, strict=True)
        )

    @property
    def encoded(self) -> bool:
        """Whether inputs are something else than callers' rows: embeddings, or several packed."""
        return self._encoder is not None

    def pack(self, values: Sequence[Tensor]) -> Tensor:
        """One tensor `(N, ...)` for each input that callers send, to callers' rows."""
        if len(values) == 1:
            return values[0]
        rows: Tensor = self._encoder.pack(values)  # type: ignore[union-attr, operator]
        return rows

    def check_size(self, rows: Tensor) -> None:
        """Refuse callers' rows of a size at which the file's program takes other steps.

        Raises:
            InvalidRequest: saying which.
        """
        if self.guard is None:
            return
        size = tuple(rows.shape[1:])
        if size not in self._sizes:
            self._sizes[size] = self.guard(rows[:1].expand(2, *size))
            if len(self._sizes) > _SHAPES:
                self._sizes.popitem(last=False)
        why = self._sizes[size]
        if why is not None:
            raise InvalidRequest.field(
                "inputs",
                f"{self.name} was read at another size, and {why}; load it with this size fixed in "
                "its manifest",
            )

    def row_shape(self, rows: Tensor) -> tuple[int, ...]:
        """The shape of an input row for callers' rows."""
        if self._encoder is None:
            return tuple(rows.shape[1:])
        return tuple(self.encode(rows[:1]).shape[1:])

    def encode(self, rows: Tensor) -> Tensor:
        """Callers' rows, on the CPU, to inputs: tokens become embeddings, several inputs one row.

        Raises:
            InvalidRequest: a token is out of the embedding's range.
        """
        if self._encoder is None:
            return rows.to(self.dtype)
        try:
            encoded: Tensor = self._encoder(rows)
        except IndexError:
            raise InvalidRequest.field(
                "inputs", f"a token is out of the range that {self.name} knows"
            ) from None
        return encoded

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Values like the inputs, `(N, *input_shape)`, by the name of the file's input.

        What a row only carries along (a mask, token indices) is left out.
        """
        if self.packing is None:
            return {"": values}
        found = zip(self.packing.parts, self.packing.unpack(values), strict=True)
        return {part.name: value for part, value in found if not part.fixed}

    def to(self, device: torch.device) -> Self:
        """Move this classifier to a device, in place."""
        self.module.to(device)
        self._mean = None if self._mean is None else self._mean.to(device)
        self.device = device
        self._prepare()
        return self

    @property
    def bounds(self) -> Bounds:
        """Smallest and largest input value.

        Raises:
            FailedPrecondition: the manifest does not state them.
        """
        if self._bounds is None:
            raise FailedPrecondition(self.lacking[Capability.BOUNDS])
        return self._bounds

    @property
    def centre(self) -> Tensor:
        """The neutral input: the manifest's mean, else mid-range, else 0; broadcasts to a row."""
        if self._mean is not None:
            return self._mean
        middle = 0.0 if self._bounds is None else sum(self._bounds) / 2
        return torch.tensor(middle, dtype=self.dtype, device=self.device)

    @property
    def scale(self) -> float:
        """The width of the bounds; 1 where they are not stated."""
        return 1.0 if self._bounds is None else self._bounds.upper - self._bounds.lower

    def neutral(self, rows: int) -> Tensor:
        """`(rows, *input_shape)` filled with `centre`; what a row only carries along is valid."""
        values = self.centre.expand(rows, *self.input_shape).clone()
        if self._carried is None:
            return values
        return self.carry(values, self._carried.to(values).expand_as(values))

    def carry(self, values: Tensor, rows: Tensor) -> Tensor:
        """`values` with what `rows` only carry along: a mask, lengths, token indices.

        Args:
            values: `(N, *input_shape)`; returned as they are where nothing is carried along.
            rows: inputs of the same shape.
        """
        if self.packing is None:
            return values
        unpacked = (self.packing.unpack(values), self.packing.unpack(rows))
        parts = zip(self.packing.parts, *unpacked, strict=True)
        return self.packing.pack(
            [given if part.fixed else value for part, value, given in parts], self.dtype
        )

    def layer(self, name: str, field: str = "layer") -> Layer:
        """A layer by name, which stands in a `field` of the request.

        Raises:
            FailedPrecondition: the model's layers cannot be read.
            InvalidRequest: there is no such layer; the message names close ones.
        """
        if Capability.LAYERS not in self.capabilities:
            raise FailedPrecondition(self.lacking[Capability.LAYERS])
        if name not in self.layers:
            from difflib import get_close_matches

            close = get_close_matches(name, self.layers, n=3, cutoff=0.3) or list(self.layers)[:3]
            raise InvalidRequest.field(
                field, f"{self.name} has no layer {name!r}; did you mean {', '.join(close)}?"
            )
        return self.layers[name]

    def activations(self, x: Tensor, layers: Sequence[str]) -> tuple[Tensor, ...]:
        """The values of `layers` at `x`, each `(N, *layer_shape)`; differentiable.

        Computes no more of the network than those layers need.
        """
        key = tuple(self.layer(name).node for name in layers)
        plans = self.plans
        return self._run(
            key,
            lambda x: self.module.compute(lambda rows: plans.layers(key, self.example)(rows), x),
            x,
        )

    def _compute_logits(self, x: Tensor) -> tuple[Tensor, ...]:
        plans = self.plans
        values = self.module.compute(lambda rows: plans.output(self.example).forward(rows), x)
        return (self.module.head(values),)

    def _run(self, what: Hashable, work: Work, x: Tensor) -> tuple[Tensor, ...]:
        """What `work` gives, recorded where passes are."""
        replays = self.plans.replays
        if replays is None or Capability.DETERMINISTIC not in self.capabilities:
            return work(x)
        return replays.run(what, work, x)

    def free(self) -> None:
        """Give up memory that only makes calls faster."""
        for plans in (self._plans, self._fast_plans):
            if plans is not None and plans.replays is not None:
                plans.replays.forget()

    def objective(self, x: Tensor, targets: Targets) -> tuple[Tensor, Tensor | None]:
        """The targets' values `(N,)` at `x`, and the logits where the target is one of them."""
        if targets.layer is None:
            logits = self(x)
            return targets.select(logits), logits
        (values,) = self.activations(x, [targets.layer])
        return targets.select(values), None

    def gradient(self, x: Tensor, targets: Targets, rule: ReluRule = ReluRule.PLAIN) -> Gradient:
        """Each row's objective differentiated by its input, under a rectifier rule.

        A row's gradient depends on that row alone; `x` is left as it was.
        """
        leaf = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            objective, logits = self.objective(leaf, targets)
            if not objective.requires_grad:
                inputs = torch.zeros_like(leaf)
            else:
                with relu_rule(rule):
                    (inputs,) = torch.autograd.grad(
                        objective.sum(), leaf, allow_unused=True, materialize_grads=True
                    )
        return Gradient(
            inputs.detach(), objective.detach(), None if logits is None else logits.detach()
        )

    def layer_shape(self, name: str, row: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """The shape of a layer's row for an input row of shape `row`."""
        layer = self.layer(name)
        if row is None or not layer.sizes or row == self.input_shape:
            return layer.shape
        key = (name, row)
        if key not in self._shapes:
            with torch.no_grad():
                x = torch.zeros(1, *row, dtype=self.dtype, device=self.device)
                (values,) = self.activations(x, [name])
            self._shapes[key] = tuple(values.shape[1:])
            if len(self._shapes) > _SHAPES:
                self._shapes.popitem(last=False)
        return self._shapes[key]

    def check_targets(self, targets: Targets, row: tuple[int, ...] | None = None) -> None:
        """Refuse targets that this model does not have.

        Args:
            targets: to check.
            row: the shape of an input row, where it is not the example's.

        Raises:
            InvalidRequest: naming `target`.
        """
        if targets.kind is TargetKind.NONE:
            return
        if targets.layer is None:
            targets.validate((self.classes,), f"{self.name}'s output")
        else:
            self.layer(targets.layer, "target")
            targets.validate(self.layer_shape(targets.layer, row), f"layer {targets.layer}")
