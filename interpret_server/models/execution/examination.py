"""Whether the operations of a pass can be recorded on one input and repeated on others."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_aten = torch.ops.aten
_BY_MASK = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}
_MOVES = {_aten._to_copy.default, _aten.copy_.default}
_CHANCES = ("dropout_p", "dropout", "p")  # arguments without which an operation draws nothing


class Unrecordable(Exception):
    """An operation depends on more than the memory that it reads; the message says which."""


def examine(work: Callable[[], Any]) -> None:
    """Run work once and look at its operations.

    Raises:
        Unrecordable: one reads values into Python, gives a tensor whose shape depends on them,
            draws random numbers, or brings values from another device.
    """
    with _Examination():  # type: ignore[no-untyped-call]
        work()


class _Examination(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.data_dependent_output in func.tags:
            raise Unrecordable(f"{func} reads values")
        if torch.Tag.dynamic_output_shape in func.tags and func not in _BY_MASK:
            raise Unrecordable(f"the shape that {func} gives depends on values")
        if func in _BY_MASK and any(map(_is_mask, tree_iter(args[1]))):
            raise Unrecordable(f"the shape that {func} gives depends on values")
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs):
            raise Unrecordable(f"{func} draws random numbers")
        result = func(*args, **kwargs)
        tensors = [t for t in tree_iter((args, kwargs, result)) if isinstance(t, Tensor)]
        moved = func in _MOVES
        if len({t.device for t in tensors if moved or t.dim() or t.device.type != "cpu"}) > 1:
            raise Unrecordable(f"{func} takes values from another device")
        return result


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _draws(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    for place, argument in enumerate(func._schema.arguments):
        if argument.name in _CHANCES:
            default = args[place] if place < len(args) else argument.default_value
            return bool(kwargs.get(argument.name, default))
    return True
