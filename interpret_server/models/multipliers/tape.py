"""One pass through a network, noted operator by operator."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from ...errors import FailedPrecondition
from .decompositions import decomposition
from .operators import Kind, kind_of, varies

_aten = torch.ops.aten
_UNRELATED = frozenset(  # give nothing of their argument's values
    getattr(_aten, name)
    for name in (
        "empty_like", "zeros_like", "ones_like", "full_like", "new_empty", "new_zeros", "new_ones",
        "new_full", "new_empty_strided",
    )
)  # fmt: skip


class Slot(NamedTuple):
    """A value that depends on the input, by its number on the tape."""

    number: int


class Layout(NamedTuple):
    """What a value looks like, without its numbers."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def blank(self) -> Tensor:
        """A tensor of this layout with whatever numbers."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class Step:
    """A call of an operator with arguments that depend on the input.

    Args:
        operator: an overload that writes to none of its arguments.
        args: with a `Slot` in place of every value that depends on the input.
        kwargs: the same.
        reads: the slots among the arguments, each once, in order.
        writes: slots of the results that are tensors, in order; None for every other result.
        kind: of the call.
    """

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: tuple[int, ...]
    writes: tuple[int | None, ...]
    kind: Kind

    def call(self, values: Sequence[Tensor]) -> list[Any]:
        """The operator's results, flat, with these values in place of `reads`."""
        given = dict(zip(self.reads, values, strict=True))
        args, kwargs = tree_map(
            lambda item: given[item.number] if isinstance(item, Slot) else item,
            (self.args, self.kwargs),
            is_leaf=lambda item: isinstance(item, Slot),
        )
        return tree_leaves(self.operator(*args, **kwargs))


@dataclass
class Record:
    """What a tape holds after a pass.

    Args:
        output: of the pass.
        last: its slot; None where it does not depend on the input.
        steps: in order.
        layouts: of all slots, by number; slot 0 is the input.
        values: the numbers of those slots whose values a multiplier can depend on.
    """

    output: Tensor
    last: int | None
    steps: list[Step]
    layouts: list[Layout]
    values: dict[int, Tensor]


def record(form: Callable[[Tensor], Tensor], x: Tensor) -> Record:
    """Run `form` at `x`, without gradients, and note the operators on the way to its output.

    Writes to tensors are replaced by what gives the same values; fused operators by what they are
    made of.

    Raises:
        FailedPrecondition: the network writes to its values in a way that cannot be followed.
    """
    leaf = x.detach().clone()
    tape = _Tape(leaf)
    with torch.no_grad(), _written_out(), tape:
        output = torch.func.functionalize(form, remove="mutations")(leaf)
    return Record(output, tape.slot(output), tape.steps, tape.layouts, tape.values)


@contextmanager
def _written_out() -> Iterator[None]:
    """Let attention and recurrent layers run operator by operator."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.MATH]), torch.backends.cudnn.flags(enabled=False):
        yield


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.layouts: list[Layout] = []
        self.values: dict[int, Tensor] = {}
        self._known: Any = WeakIdKeyDictionary()
        self._add(x)

    def slot(self, value: Any) -> int | None:
        """The slot of a value; None for one that does not depend on the input."""
        known: int | None = self._known.get(value) if isinstance(value, Tensor) else None
        return known

    def _add(self, value: Tensor) -> int:
        number = len(self.layouts)
        self.layouts.append(Layout(value.shape, value.stride(), value.dtype, value.device))
        self._known[value] = number
        return number

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        operands = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        packet = func.overloadpacket
        if packet in _UNRELATED or all(self.slot(item) is None for item in operands):
            return func(*args, **kwargs)
        parts = decomposition(packet, args)
        if parts is not None:
            with self:
                return parts(*args, **kwargs)
        if func._schema.is_mutable:
            return self._write(func, args, kwargs)
        results = func(*args, **kwargs)
        self._note(func, args, kwargs, results)
        return results

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator that writes to its first argument, noted as the one that does not."""
        written = args[0]
        pure = _pure(func)
        before, number = written.clone(), self.slot(written)
        if number is not None:
            self._known[before] = number
            if number in self.values:
                self.values[number] = before
        results = func(*args, **kwargs)
        self._note(pure, (before, *args[1:]), kwargs, results)
        return results

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: Any) -> None:
        operands: dict[int, Tensor] = {}

        def numbered(item: Any) -> Any:
            number = self.slot(item)
            if number is None:
                return item
            operands[number] = item
            return Slot(number)

        noted_args, noted_kwargs = tree_map(numbered, (args, kwargs))
        leaves = tree_leaves(results)
        given = [item for item in leaves if isinstance(item, Tensor)]
        kind = kind_of(
            func,
            taken=[item.dtype for item in operands.values()],
            given=[item.dtype for item in given],
            uses=[sum(isinstance(item, Slot) for item in _leaves(part)) for part in noted_args],
        )
        writes = tuple(self._add(item) if isinstance(item, Tensor) else None for item in leaves)
        self.steps.append(Step(func, noted_args, noted_kwargs, tuple(operands), writes, kind))
        for number, value in operands.items():
            if kind is not Kind.LINEAR or not varies(value.dtype):
                self.values[number] = value


@lru_cache(maxsize=256)
def _pure(func: Any) -> Any:
    """The operator that gives what this one writes to its first argument."""
    packet = getattr(_aten, func.overloadpacket.__name__.removesuffix("_"), None)
    for name in () if packet is None else packet.overloads():
        overload = getattr(packet, name)
        if not overload._schema.is_mutable and _taken(overload) == _taken(func):
            return overload
    raise FailedPrecondition(
        f"the network calls {func.overloadpacket.__name__}, which writes to its values in a way "
        "that cannot be followed"
    )


def _taken(operator: Any) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in operator._schema.arguments]


def _leaves(part: Any) -> list[Any]:
    return tree_leaves(part, is_leaf=lambda item: isinstance(item, Slot))
