"""Higher-order operators: parts of a program under a setting, a condition or a loop."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..lowered import Unlowerable
from ..torchscript.values import DTYPES, Item, Origin, Value, leaves

if TYPE_CHECKING:
    from .walker import Walker

_aten = torch.ops.aten
_STEPS = 4096  # of all loops that are written out


def _without_gradient(walker: "Walker", enabled: Item, body: Any, *items: Item) -> Item:
    outputs = walker.run(body, items)
    if enabled.value is False and any(
        leaf.is_tensor and leaf.origin >= Origin.DATA and leaf.value.is_floating_point()
        for leaf in leaves(outputs)
    ):
        walker.recorder.note(
            "A part of the program ran without gradients (torch.no_grad); here they pass through "
            "it."
        )
    return tuple(outputs)


def _autocast(
    walker: "Walker",
    device: Item,
    dtype: Item,
    enabled: Item,
    cache: Item,
    body: Any,
    *items: Item,
) -> Item:
    if enabled.value:
        walker.precision = DTYPES.get(dtype.value, torch.bfloat16)
        walker.recorder.note(
            "A part of the program ran in mixed precision (autocast); here it computes in the "
            "precision of its weights."
        )
    return tuple(walker.run(body, items))


def _cond(
    walker: "Walker", condition: Item, true: Any, false: Any, items: Sequence[Item] = ()
) -> Item:
    if isinstance(condition, Value) and condition.origin >= Origin.DATA:
        raise Unlowerable(f"torch.cond depends on tensor data{walker.recorder.where()}")
    taken = walker.recorder.static(condition, "torch.cond")
    return tuple(walker.run(true if bool(taken) else false, list(items)))


def _steps(walker: "Walker", items: Sequence[Item], what: str) -> int:
    sizes = [walker.structure.size([item, Value(0)]) for item in items]
    if not sizes or any(size.origin is not Origin.CONSTANT for size in sizes):
        extents = {walker.recorder.static(size, what) for size in sizes}
    else:
        extents = {size.value for size in sizes}
    count = extents.pop() if len(extents) == 1 else _STEPS + 1
    if count > _STEPS:
        raise Unlowerable(f"{what} has no fixed number of steps{walker.recorder.where()}")
    return int(count)


def _map(walker: "Walker", body: Any, items: Sequence[Item], rest: Sequence[Item] = ()) -> Item:
    count = _steps(walker, items, "torch.map")
    rows = [
        walker.run(body, [*(_at(walker, item, step) for item in items), *rest])
        for step in range(count)
    ]
    return tuple(_stacked(walker, list(column)) for column in zip(*rows, strict=True))


def _scan(
    walker: "Walker",
    body: Any,
    start: Sequence[Item],
    items: Sequence[Item],
    rest: Sequence[Item] = (),
) -> Item:
    count = _steps(walker, items, "torch.scan")
    carried, rows = list(start), []
    for step in range(count):
        given = [*carried, *(_at(walker, item, step) for item in items), *rest]
        outputs = walker.run(body, given)
        carried = outputs[: len(start)]
        rows.append(outputs[len(start) :])
    columns = (_stacked(walker, list(column)) for column in zip(*rows, strict=True))
    return (*carried, *columns)


def _at(walker: "Walker", item: Item, step: int) -> Item:
    return walker.call(_aten.select.int, item, 0, step)


def _stacked(walker: "Walker", items: list[Item]) -> Item:
    return walker.call(_aten.stack.default, items, 0)


REGIONS: dict[str, Callable[..., Item]] = {
    "wrap_with_set_grad_enabled": _without_gradient,
    "wrap_with_autocast": _autocast,
    "cond": _cond,
    "map_impl": _map,
    "scan": _scan,
}
