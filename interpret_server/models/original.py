"""The file's own execution, and what trying it tells about its inputs."""

import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from ..errors import InvalidRequest, ModelRejected
from .batching import InGroups
from .classifier import Bounds
from .inputs import ResolvedInput
from .logits import leaves
from .lowered import Lowered
from .manifest import InputKind
from .packing import Packing, Part, Slot, Unpack
from .sources import Source, brief

_PHOTO = (224, 64, 32, 299, 28, 96, 128, 256, 512, 16, 8)
_SEQUENCE = (16, 32, 64, 8, 128, 256, 512, 1, 1024, 16000)
_MOST_GUESSED = 4  # inputs whose kind is tried out
_BATCHES = (5, 2, 1)
_BAKED_BATCHES = (3, 4, 8, 16, 32, 64)  # of training code that wrote its own into the network
_MOST_VALUES = 1 << 22  # in a batch of those
_INTEGERS = re.compile(
    r"(^|_)(\w*ids?|\w*idx|\w*ind(ex|ices)|\w*masks?|len|lens|lengths?|seq_?lens?|tokens?|words?|"
    r"chars?|segments?|types?|cats?|categor\w*|bytes?)($|_|\d|\.)"
)
_LENGTHS = re.compile(r"(^|_)(\w*len|\w*lens|\w*lengths?)($|_|\d|\.)")


class InputSet:
    """The inputs of a file, and how callers' rows become them.

    A caller's rows are one tensor: that of the sole input which callers send, or all of them
    packed as float64.

    Args:
        items: in the file's order, each with an example's shape.
        dtype: that the file computes in.
    """

    def __init__(self, items: Sequence[ResolvedInput], dtype: torch.dtype) -> None:
        self.items, self.dtype = tuple(items), dtype
        self.given = tuple(item for item in items if item.default is None)
        single = len(self.given) == 1
        self.packing = None if single else Packing([part(item) for item in self.given])
        free = self.given[0].free_axes if single else ()
        self.to_file = Unpack(
            self.packing,
            [self._slot(item, dtype) for item in items],
            free[0] if free else None,
        )

    def _slot(self, item: ResolvedInput, dtype: torch.dtype) -> Slot:
        wanted = item.file_dtype or (dtype if item.dtype.is_floating_point else item.dtype)
        if item.default is not None:
            sizes = item.sizes or item.shape
            return Slot(None, wanted, sizes=sizes, value=item.default)
        return Slot(self.given.index(item), wanted, mean=item.mean, std=item.std)

    def pack(self, values: Sequence[Tensor]) -> Tensor:
        """One tensor per given input to callers' rows."""
        return values[0] if self.packing is None else self.packing.pack(values, torch.float64)

    def unpack(self, rows: Tensor) -> list[Tensor]:
        """Callers' rows to one tensor per given input."""
        return [rows] if self.packing is None else self.packing.unpack(rows)

    def probes(self, limits: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Five and two of a caller's rows to try the model with.

        Args:
            limits: integers of the given inputs lie in [0, limit); 2 where not said.
        """
        limits = limits or (2,) * len(self.given)
        drawn = [
            self._as_lengths(item).probes(limit, seed)
            for seed, (item, limit) in enumerate(zip(self.given, limits, strict=True))
        ]
        five, two = (self.pack(values) for values in zip(*drawn, strict=True))
        return five, two

    def _as_lengths(self, item: ResolvedInput) -> ResolvedInput:
        """Lengths, by their name, lie between 1 and the length of the sequence beside them."""
        longest = max((other.shape[0] for other in self.given if other.shape), default=1)
        named = _LENGTHS.search(item.name.lower()) is not None
        if not named or item.dtype.is_floating_point or item.bounds is not None:
            return item
        return replace(item, bounds=Bounds(1, longest))

    def of_size(self, size: int, dtype: torch.dtype) -> "InputSet":
        """The same with every free size set, as an example."""
        return InputSet([item.of_size(size) for item in self.items], dtype)


def part(item: ResolvedInput) -> Part:
    """An input's place in a caller's rows."""
    return Part(item.name, item.sizes or item.shape, fixed=not item.dtype.is_floating_point)


class Original:
    """The file's own execution, on any number of rows.

    Args:
        source: the opened file.
        items: its inputs; kinds and free sizes that nobody stated are found by trying.

    Raises:
        InvalidRequest: the file does not run on such inputs.
    """

    def __init__(self, source: Source, items: Sequence[ResolvedInput]) -> None:
        self.source = source
        self.rows: int | None = None  # the batch size that the file insists on
        self.fixed = next((item.fixed_batch for item in items if item.fixed_batch), None)
        self._failure: Exception | None = None
        trials = list(_trials(items))
        while self.module is not None and not self._tried_all(trials):
            example = self._example(InputSet(trials[0], source.dtype), self.fixed or 2)
            if not source.fall_back(self._failure, example):
                self._refuse(items)
        if self.module is None:
            self._adopt(trials[0])
            return
        if any(item.free_axes for item in self.inputs.items) and not self._runs_at_another_size():
            self._adopt([item.fixed() for item in self.inputs.items])
            self.inputs.given[0].notes.append("The file runs at no other size than the example's.")

    @property
    def module(self) -> nn.Module | None:
        """What runs the file; None where nothing does."""
        return self.source.original

    def _adopt(self, items: Sequence[ResolvedInput]) -> None:
        self.inputs = InputSet(items, self.source.dtype)
        self.example = self._example(self.inputs, self.rows or 2)

    def _example(self, inputs: InputSet, rows: int) -> tuple[Tensor, ...]:
        probes = inputs.probes()[0]
        order = torch.arange(rows) + (3 if rows == 2 else 0)
        values: tuple[Tensor, ...] = inputs.to_file(probes[order % len(probes)])
        return values

    def _tried_all(self, trials: Sequence[Sequence[ResolvedInput]]) -> bool:
        few = len(trials) <= 1 << _MOST_GUESSED and not self.fixed
        return any(self._tried(trial, _BATCHES) for trial in trials) or (
            few and any(self._tried(trial, _BAKED_BATCHES) for trial in trials)
        )

    def _tried(self, items: Sequence[ResolvedInput], batches: Sequence[int]) -> bool:
        inputs = InputSet(items, self.source.dtype)
        most = _MOST_VALUES // max(1, sum(math.prod(item.shape) for item in items))
        for rows in (self.fixed,) if self.fixed else batches:
            if rows > max(5, most, self.fixed or 0) or not self._runs(self._example(inputs, rows)):
                continue
            any_number = rows == 5 and not self.fixed and self._runs(self._example(inputs, 2))
            self.rows = None if any_number else rows
            self._adopt([replace(item, fixed_batch=self.rows) for item in items])
            return True
        return False

    def _runs_at_another_size(self) -> bool:
        return self.another_size() is not None

    def another_size(self, lowered: Lowered | None = None) -> InputSet | None:
        """The inputs at a second size of the free axes, if the file runs there.

        Args:
            lowered: the file takes the steps of this graph there.
        """
        if self.module is None:
            return None
        for size in _other_sizes(self.inputs.items):
            other = self.inputs.of_size(size, self.source.dtype)
            example = self._example(other, self.rows or 2)
            if self._runs(example) and (
                lowered is None or self.source.decided_otherwise(lowered, example) is None
            ):
                return other
        return None

    def _runs(self, example: tuple[Tensor, ...]) -> bool:
        assert self.module is not None
        try:
            with torch.no_grad():
                self.module(*example)
        except Exception as error:  # whatever a foreign program raises
            self._failure = self._failure or error
            return False
        return True

    def _refuse(self, items: Sequence[ResolvedInput]) -> None:
        first = items[0]
        if any(size is None for size in first.sizes) and not first.shape:
            raise InvalidRequest.field(
                f"{first.field}.example",
                "the file runs at none of the usual sizes; give the shape of an example",
            )
        shapes = " and ".join(str(list(item.shape)) for item in items)
        raise InvalidRequest.field(
            f"{first.field}.shape",
            f"the file does not run on rows of shape {shapes} "
            f"({brief(self._failure or ModelRejected('it takes no rows'))})",
        ) from self._failure

    def output(self, index: int, rows: int | None) -> Callable[[Tensor], Tensor]:
        """From callers' rows to the chosen output, `(N, numbers in a row)`.

        Args:
            index: of the output.
            rows: at a time, where the served form insists on a number.
        """
        assert self.module is not None
        at_once = self.rows or rows
        chosen: nn.Module = _Leaf(self.inputs.to_file, self.module, index)
        module = chosen if at_once is None else InGroups(chosen, at_once)

        def run(x: Tensor) -> Tensor:
            with torch.no_grad():
                values: Tensor = module(x)
            return values.reshape(len(x), -1)

        return run


class _Leaf(nn.Module):
    def __init__(self, unpack: Unpack, module: nn.Module, index: int) -> None:
        super().__init__()
        self.unpack, self.module, self.index = unpack, module, index

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = leaves(self.module(*self.unpack(x)))[self.index][1]
        return values


def _trials(items: Sequence[ResolvedInput]) -> Iterator[list[ResolvedInput]]:
    """The inputs with every guess at sizes and kinds, likely ones first."""
    for shaped in _shaped(items):
        open_kinds = [
            index
            for index, item in enumerate(shaped)
            if item.kind is None and item.file_dtype is None
        ][:_MOST_GUESSED]
        choices = product((False, True), repeat=len(open_kinds))
        likely = [_looks_integral(shaped[index]) for index in open_kinds]
        if len(shaped) == 1:
            likely = [False] * len(likely)  # numbers lose nothing where the file takes them
        for choice in sorted(choices, key=lambda choice: sum(map(operator.ne, choice, likely))):
            trial = list(shaped)
            for index, integral in zip(open_kinds, choice, strict=True):
                trial[index] = _integral(trial[index]) if integral else trial[index]
            yield [_integral(item) if _is_integral(item) else item for item in trial]


def _looks_integral(item: ResolvedInput) -> bool:
    """Whether an input of which the file tells nothing is likely to take integers."""
    if item.sent_integers is not None:
        return item.sent_integers
    return _INTEGERS.search(item.name.lower()) is not None


def _is_integral(item: ResolvedInput) -> bool:
    return item.integral and item.kind is not InputKind.VALUES and item.dtype.is_floating_point


def _integral(item: ResolvedInput) -> ResolvedInput:
    return replace(item, dtype=torch.int64, mean=None, std=None)


def _shaped(items: Sequence[ResolvedInput]) -> Iterator[list[ResolvedInput]]:
    """The inputs with every guess at the sizes that nobody stated."""
    if all(item.shape for item in items if item.sizes):
        yield list(items)
        return
    for guess in (_in_colour, _in_grey, _with_channels_last, lambda item: item):
        guessed = [item if item.shape else guess(item) for item in items]
        if any(item is None for item in guessed):
            continue
        known = [item for item in guessed if item is not None]
        first = next(item for item in known if item.sizes)
        for size in _PHOTO if first.layout in ("CHW", "HWC") else _SEQUENCE:
            shaped = [i if i.shape or not i.sizes else i.of_size(size) for i in known]
            if max(math.prod(item.shape) for item in shaped) <= _MOST_VALUES:
                yield shaped


def _in_colour(item: ResolvedInput) -> ResolvedInput | None:
    return _photo(item, (3, None, None), "CHW")


def _in_grey(item: ResolvedInput) -> ResolvedInput | None:
    return _photo(item, (1, None, None), "CHW")


def _with_channels_last(item: ResolvedInput) -> ResolvedInput | None:
    return _photo(item, (None, None, 3), "HWC")


def _photo(item: ResolvedInput, sizes: tuple[int | None, ...], layout: str) -> ResolvedInput | None:
    """Three free sizes as those of an image; None where the input has others."""
    if item.sizes != (None, None, None):
        return None
    return replace(item, sizes=sizes, layout=layout)


def _other_sizes(items: Sequence[ResolvedInput]) -> Iterator[int]:
    first = next(item for item in items if item.free_axes)
    now = first.shape[first.free_axes[0]]
    yield from dict.fromkeys((now + now // 2, 2 * now, now + 32, now + 1, max(1, now // 2)))
