"""Tensors that share memory: writes in place become new values that every alias sees.

A view remembers what it was made from and how. A write to it gives its base a new value with the
written part replaced, up to the tensor that owns the memory; the other views of that tensor are
made again when they are read next. No example's memory is ever written to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..lowered import Unlowerable
from .values import Item, Origin, Value

if TYPE_CHECKING:
    from .operators import Operators

_aten = torch.ops.aten
# Views that keep the order of the elements: another shape of the same list.
_SHAPE_ONLY = frozenset(
    {
        "alias", "contiguous", "detach", "dropout", "feature_dropout", "alpha_dropout",
        "feature_alpha_dropout", "flatten", "reshape", "reshape_as", "squeeze", "unflatten",
        "unsqueeze", "view", "view_as",
    }
)  # fmt: skip


@dataclass
class View:
    """How a tensor was made from another that shares its memory.

    Args:
        base: the other one.
        operator: without namespace.
        items: of the call; `items[position]` is the base.
        index: which of several results it is; None for the only one.
        make: calls the operator again.
    """

    base: Value
    operator: str
    items: Sequence[Item]
    position: int
    index: int | None
    make: Callable[[Sequence[Item]], Item]

    def again(self, base: Value) -> Value:
        """The same view of another tensor."""
        items = list(self.items)
        items[self.position] = base
        made = self.make(items)
        value: Value = made if self.index is None else made[self.index]
        return value


def link(
    operator: str, items: Sequence[Item], result: Item, make: Callable[[Sequence[Item]], Item]
) -> None:
    """Note which results of a call share the memory of one of its arguments."""
    results = enumerate(result) if isinstance(result, (list, tuple)) else [(None, result)]
    for index, value in results:
        if not isinstance(value, Value) or not value.storage or value.view is not None:
            continue
        for position, item in enumerate(items):
            if isinstance(item, Value) and item is not value and item.storage == value.storage:
                value.view = View(item, operator, items, position, index, make)
                item.views.add(value)
                break


def refresh(value: Value) -> None:
    """Bring a view up to date with writes to the memory that it shows."""
    if not value.outdated:
        return
    view = value.view
    assert view is not None
    refresh(view.base)
    assign(value, view.again(view.base))
    value.outdated = False


def assign(value: Value, result: Value) -> None:
    """Let an object hold another value; what refers to the object sees it."""
    value.value, value.node, value.origin = result.value, result.node, result.origin
    value.number = None


def write(operators: "Operators", target: Value, result: Value, what: str) -> None:
    """Write `result`, which has the target's shape and dtype, to the memory of `target`.

    Raises:
        Unlowerable: the memory is laid out so that no graph can say what the write does.
    """
    current, changed = target, result
    written = {id(target)}
    updates = [(target, result)]
    while current.view is not None:
        base = current.view.base
        changed = _replaced(operators, current.view, changed, what)
        updates.append((base, changed))
        written.add(id(base))
        current = base
    for value, new in updates:
        assign(value, new)
        value.outdated = False
    pending = [current]
    while pending:
        for view in pending.pop().views:
            view.outdated = view.outdated or id(view) not in written
            pending.append(view)


def reshape_in_place(target: Value, result: Value, view: View) -> None:
    """`unsqueeze_` and the like: the object becomes a view of what it was."""
    before = Value(target.value, target.origin, target.node, path=target.path, number=target.number)
    before.view = target.view
    before.views = target.views
    if before.view is not None:
        before.view.base.views.discard(target)
        before.view.base.views.add(before)
    for other in before.views:
        assert other.view is not None
        other.view.base = before
    assign(target, result)
    target.view, target.views = view, type(before.views)()
    view.base = before
    before.views.add(target)


def _replaced(operators: "Operators", view: View, changed: Value, what: str) -> Value:
    """The base of a view after the view has changed."""
    base = view.base
    refresh(base)
    if view.operator == "detach" and base.origin is not Origin.CONSTANT:
        raise Unlowerable(f"{what} writes to a detached tensor{operators.recorder.where()}")
    if base.value.dtype is not changed.value.dtype:
        raise Unlowerable(
            f"{what} writes through a view of another type{operators.recorder.where()}"
        )
    sizes = operators.structure.size([base])
    if view.operator in _SHAPE_ONLY:
        return _value(operators.call(_aten.reshape.default, [changed, sizes]))
    items = list(view.items)
    if view.operator == "select":
        return _value(operators.call(_aten.select_scatter.default, [base, changed, *items[1:]]))
    if view.operator == "unbind":
        rest = [items[1], Value(view.index)]
        return _value(operators.call(_aten.select_scatter.default, [base, changed, *rest]))
    if view.operator == "slice":
        return _value(operators.call(_aten.slice_scatter.default, [base, changed, *items[1:]]))
    return _scattered(operators, view, changed, sizes, what)


def _scattered(operators: "Operators", view: View, changed: Value, sizes: Item, what: str) -> Value:
    """Any view: where it reads its elements from is found by viewing their positions."""
    base = view.base
    count = operators.structure.numel([base])
    none = Value(None)
    long = Value(4)
    positions = operators.call(_aten.arange.default, [count, long, none, none, none])
    seen = view.again(_value(operators.call(_aten.reshape.default, [positions, sizes])))
    flat = [Value(-1)]
    index = _value(operators.call(_aten.reshape.default, [seen, flat]))
    if index.value.unique().numel() != index.value.numel():
        raise Unlowerable(
            f"{what} writes to a tensor whose elements share memory{operators.recorder.where()}"
        )
    source = operators.call(_aten.reshape.default, [changed, flat])
    whole = operators.call(_aten.reshape.default, [base, flat])
    whole = operators.call(_aten.scatter.src, [whole, Value(0), index, source])
    return _value(operators.call(_aten.reshape.default, [whole, sizes]))


def _value(item: Any) -> Value:
    assert isinstance(item, Value)
    assert item.origin is not Origin.RAGGED or item.is_tensor
    return item
