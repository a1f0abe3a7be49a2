"""Records passes on the CPU as CUDA graphs are recorded on a GPU: operations and their memory.

A pass that is played back reads and writes the tensors of the recorded one, wherever they lie, and
runs no Python of the network. What was computed by Python while recording stays as it was.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Operation = tuple[Any, tuple[Any, ...], Mapping[str, Any], list[Any]]


class Tape:
    """A `Recorder`."""

    def __init__(self) -> None:
        self.recorded = 0
        self.played = 0
        self.room = True

    def apart(self) -> Self:
        return self

    def has_room(self) -> bool:
        return self.room

    def record(
        self, work: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        with _Operations() as operations:  # type: ignore[no-untyped-call]
            results = work()
        self.recorded += 1

        def play() -> None:
            self.played += 1
            with torch.no_grad():
                for operation in operations.noted:
                    _repeat(*operation)

        return results, play


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noted: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        made = [  # neither views nor what was written in place
            leaf
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in read
            else None
            for leaf in tree_leaves(result)
        ]
        self.noted.append((func, args, kwargs, made))
        return result


def _repeat(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], made: list[Any]) -> None:
    for ours, found in zip(made, tree_leaves(func(*args, **kwargs)), strict=True):
        if ours is not None:
            ours.copy_(found)
