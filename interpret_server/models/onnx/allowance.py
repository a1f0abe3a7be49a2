"""How much memory and work the values of a graph may take, and the constants computed at import."""

import math
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ...errors import InvalidModel

MAX_CONSTANT = 512 * 2**20
MAX_CONSTANTS = 2 * 2**30
MAX_VALUE = 16 * 2**30
MAX_WORK = 10**12  # additions and multiplications of one constant, seconds on one core


class Allowance:
    """The bytes of constants that one import may compute."""

    def __init__(self) -> None:
        self.used = 0

    def claim(self, size: int) -> None:
        """Count the bytes of one more constant.

        Raises:
            InvalidModel: it, or all of them together, would be too large.
        """
        self.used += size
        if size > MAX_CONSTANT or self.used > MAX_CONSTANTS:
            raise InvalidModel(
                f"model: the graph computes constants of {size / 2**20:.0f} MiB; "
                f"at most {MAX_CONSTANT // 2**20} MiB are accepted"
            )


def check_value(size: int) -> None:
    """Refuse a graph with a value of that many bytes.

    Raises:
        InvalidModel: no machine should be asked for it.
    """
    if size > MAX_VALUE:
        raise InvalidModel(
            f"model: a value of the graph takes {size / 2**30:.0f} GiB; "
            f"at most {MAX_VALUE // 2**30} GiB are accepted"
        )


class Work(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what the operators inside would have to compute, from tensors without data."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        elif "pool" in packet.__name__ and len(args) > 1 and isinstance(args[1], list | tuple):
            values = result[0] if isinstance(result, tuple) else result
            self.total += values.numel() * math.prod(args[1])
        elif isinstance(result, Tensor):
            self.total += result.numel()
        return result

    def check(self) -> None:
        """Refuse too much of it.

        Raises:
            InvalidModel: computing the constant would take too long.
        """
        if self.total > MAX_WORK:
            raise InvalidModel(
                f"model: a constant of the graph takes {self.total:.2g} operations to compute; "
                f"at most {MAX_WORK:.0g} are accepted"
            )
