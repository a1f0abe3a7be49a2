"""A device that any machine has: torch's device type `meta`, given memory and arithmetic.

Tensors on it compute what the CPU computes, and are refused where a GPU's would be: beside tensors
of the CPU in one operation (unless these are single numbers), as indices into one of these, by
numpy. It shows where code that is written on the CPU forgets a device; kernels, streams and
rounding of a real one it does not show.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

DEVICE = torch.device("meta")
_CPU = torch.device("cpu")
_aten = torch.ops.aten
_MOVES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXED = {
    _aten.index.Tensor,
    _aten.index_put_.default,
    _aten.index_put.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
    _aten._unsafe_index_put.default,
}  # whose second argument may be on the CPU
_PACK = _aten._pack_padded_sequence.default
_LENGTHS = {_PACK, _aten._pack_padded_sequence_backward.default}  # and batch sizes: on the CPU


class Distant(torch.Tensor):
    """A tensor on the device; `near` holds its values."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=DEVICE,
        )
        made.near = near
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Distant({self.near})"

    def tolist(self) -> Any:
        """As of any device's tensor, which torch refuses for subclasses."""
        return self.near.tolist()


@contextmanager
def stand_in_device() -> Iterator[torch.device]:
    """Within the block, and in the thread that enters it, the device can be used."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Operations(), _Constructors():
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """Those that fill a tensor before any operation is seen."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            device = given.pop("device", None)
            made = func(*args, **given)
            return made if device is None else made.to(device)
        if func is torch.Tensor.new_tensor:
            like, *rest = args
            device = given.pop("device", like.device)
            return torch.tensor(*rest, **{"dtype": like.dtype, **given}).to(device)
        if func is torch.unravel_index and isinstance(args[0], Distant):
            return tuple(Distant(found) for found in func(args[0].near, *args[1:], **given))
        return func(*args, **given)


def _run(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    tensors = _tensors((args, kwargs))
    _check(func, args, kwargs, tensors)
    if torch.Tag.inplace_view in func.tags and isinstance(args[0], Distant):
        with no_dispatch():  # the wrapper's own sizes
            func(*args, **kwargs)
    device = kwargs.get("device")
    if func is _aten.copy_.default:
        distant = isinstance(args[0], Distant)
    elif device is None:
        distant = any(isinstance(tensor, Distant) for tensor in tensors)
    else:
        distant = torch.device(device).type == DEVICE.type
        kwargs = {**kwargs, "device": _CPU}
    found = func(*tree_map(_near, args), **tree_map(_near, kwargs))
    if func is _PACK:
        return Distant(found[0]) if distant else found[0], found[1]
    given = {id(_near(tensor)): tensor for tensor in tensors}  # what was written to

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in given:
            return given[id(value)]
        return Distant(value) if distant else value

    return tree_map(wrapped, found)


def _check(func: Callable[..., Any], args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    """Refuse what a GPU would."""
    if func in _MOVES or func in _LENGTHS:
        return
    own = _tensors((args[0], args[2:], kwargs)) if func in _INDEXED else tensors
    somewhere = any(isinstance(tensor, Distant) for tensor in own)
    stray = any(not isinstance(tensor, Distant) and tensor.dim() for tensor in own)
    indices_alone = not somewhere and any(isinstance(tensor, Distant) for tensor in tensors)
    if (somewhere and stray) or indices_alone:
        where = ", ".join(f"{list(tensor.shape)} on {tensor.device.type}" for tensor in tensors)
        raise RuntimeError(f"{func}: tensors on two devices: {where}")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]


def _near(value: Any) -> Any:
    return value.near if isinstance(value, Distant) else value
