"""Emits graph nodes; folds constants; knows every value's rank, dtype and sizes while it builds.

Each node carries its value under two witness batch sizes, as tensors without data. A size that is
equal under both does not depend on the batch and becomes a literal.
"""

import keyword
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ...errors import InvalidModel
from ..lowered import Unlowerable
from .allowance import Allowance, Work, check_value
from .looping import Trips
from .values import UNKNOWN, Examples, Listed, Maybe, Number, Numbers, Value, number_type


class FixedBatch(Exception):
    """The graph does not run at other batch sizes than the file's."""


def size(x: Tensor, axis: int) -> int:
    """The size of an axis, as a Python number."""
    return x.shape[axis]


def numbers_to_tensor(items: Sequence[float], like: Tensor, dtype: torch.dtype) -> Tensor:
    """Python numbers as a vector on the device of `like`."""
    return torch.tensor(items, dtype=dtype, device=like.device)


def number_to_tensor(item: float, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A Python number as a tensor of rank 0 on the device of `like`."""
    return torch.tensor(item, dtype=dtype, device=like.device)


def to_numbers(x: Tensor) -> Any:
    """The elements of a tensor as Python numbers; waits for the device."""
    return x.tolist()


def item_at(values: Sequence[Any], index: int) -> Any:
    """One output of an operator that has several."""
    return values[index]


def as_list(items: Sequence[Any]) -> list[Any]:
    """Values as an ONNX sequence."""
    return list(items)


class Builder:
    """An FX graph under construction.

    Args:
        fixed_batch: the batch size that the file fixes and that is being made free, or None.
        outer: of the graph whose values this one uses, for the body of a loop or a branch.

    Attributes:
        captured: values of the outer graph -> the inputs of this graph that hold them, in order.
        decides: whether computed values decide what is run, for all rows of a batch together.
        trips: counts the steps of all loops.
    """

    def __init__(self, fixed_batch: int | None = None, outer: "Builder | None" = None) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.fixed_batch, self.outer = fixed_batch, outer
        self.captured: dict[fx.Node, fx.Node] = {}
        self.freed = False
        self.mixes_rows = False  # see rows.py
        self.rows_apart: bool = outer.rows_apart if outer else True
        self.decides = False
        self.trips: Trips = outer.trips if outer else Trips()
        self._anchor: fx.Node | None = None
        self._stored: dict[int, tuple[Tensor, fx.Node]] = {}
        self._allowance: Allowance = outer._allowance if outer else Allowance()

    def placeholder(self, name: str, examples: Examples) -> fx.Node:
        """An input of the graph, with its value under each witness."""
        node = self.graph.create_node("placeholder", _identifier(name), name=_identifier(name))
        node.target = node.name
        node.meta["examples"] = examples
        if self.outer is None:
            self._anchor = self._anchor or node
        return node

    def capture(self, value: Maybe) -> Maybe:
        """A value of the outer graph as this graph sees it."""
        if isinstance(value, Numbers):
            items = tuple(self._capture(item) for item in value.items)
            return Numbers(items, value.scalar, value.dtype)
        if isinstance(value, Listed):
            return Listed(tuple(cast(Value, self.capture(item)) for item in value.items))
        return cast(Maybe, self._capture(value))

    def _capture(self, value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        if value not in self.captured:
            examples = value.meta.get("examples", UNKNOWN)
            self.captured[value] = self.placeholder(value.name, examples)
        return self.captured[value]

    @property
    def batches(self) -> tuple[int, int]:
        """The batch sizes of the two witnesses: 1, and one that is unlikely to be anything else."""
        return (1, 13) if self.fixed_batch != 13 else (1, 11)

    @property
    def anchor(self) -> fx.Node:
        """A node whose value is on the device where the graph runs."""
        if self._anchor is None and self.outer is not None:
            self._anchor = self._capture(self.outer.anchor)
        if self._anchor is None:
            raise Unlowerable("the graph has no inputs")
        return self._anchor

    def module(
        self,
        module: nn.Module,
        *args: Any,
        name: str,
        kind: str,
        examine: Callable[..., Any] | None = None,
        examples: Examples | None = None,
    ) -> Any:
        """The result of a module of its own; folded where every argument is a constant.

        Args:
            examine: what gives the result's shapes from arguments without data; the module itself
                where it is left out.
            examples: the result under each witness, of a module that is not to be run at import.
        """
        module.eval().requires_grad_(False)
        state = {key: value.to("meta") for key, value in module.state_dict().items()}

        def run(*values: Any) -> Any:
            return torch.func.functional_call(module, state, values)

        if not _nodes(args) and examples is None:
            return self._fold(module, args, {}, examine or run)
        path = self._attribute(name)
        self.root.add_module(path, module)
        inputs = self._embed(args)
        node = self.graph.create_node("call_module", path, inputs, name=_identifier(name))
        if examples is None:
            self._examine(node, examine or run, inputs, {})
        else:
            node.meta["examples"] = examples
        node.meta["kind"] = kind
        return node

    def function(
        self, target: Callable[..., Any], *args: Any, name: str, kind: str, **kwargs: Any
    ) -> Any:
        """The result of a function; folded where it depends on no node."""
        if not _nodes((args, kwargs)):
            return self._fold(target, args, kwargs, target)
        args, kwargs = self._embed(args), self._embed(kwargs)
        node = self.graph.create_node("call_function", target, args, kwargs, name=_identifier(name))
        self._examine(node, target, args, kwargs)
        node.meta["kind"] = kind
        return node

    def number(self, target: Callable[..., Any], *args: Any) -> Number:
        """A Python number computed from others, at import where all are known."""
        if not _nodes(args):
            result: Number = target(*args)
            return result
        node = self.graph.create_node("call_function", target, args)
        self._examine(node, target, args, {})
        return node

    def sizes(self, x: Value) -> list[Number] | None:
        """The sizes of all axes; nodes where they depend on the batch; None for unknown rank."""
        if isinstance(x, Tensor):
            return list(x.shape)
        if isinstance(x, Numbers):
            return [] if x.scalar else [len(x.items)]
        if isinstance(x, Listed):
            return None
        known = self.shape(x)
        if known is None:
            return None
        return [
            length if length is not None else self.number(size, x, axis)
            for axis, length in enumerate(known)
        ]

    def shape(self, x: Value) -> tuple[int | None, ...] | None:
        """The sizes of all axes; None where they depend on the batch, or for unknown rank."""
        if isinstance(x, Listed):
            return None
        if not isinstance(x, fx.Node):
            return tuple(length for length in self.sizes(x) or () if isinstance(length, int))
        first, second = x.meta.get("examples", UNKNOWN)
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return None
        if first.dim() != second.dim():
            return None
        return tuple(a if a == b else None for a, b in zip(first.shape, second.shape, strict=True))

    def dtype(self, x: Value) -> torch.dtype | None:
        """The element type, or None where it is unknown."""
        if isinstance(x, Listed):
            return None
        if not isinstance(x, fx.Node):
            return x.dtype
        example = x.meta.get("examples", UNKNOWN)[0]
        return example.dtype if isinstance(example, Tensor) else None

    def examples(self, x: Value) -> tuple[Tensor, Tensor] | None:
        """The value under each witness, without data; None where unknown or constant."""
        if not isinstance(x, fx.Node):
            return None
        first, second = x.meta.get("examples", UNKNOWN)
        both = isinstance(first, Tensor) and isinstance(second, Tensor)
        return (first, second) if both else None

    def tensor(self, x: Value) -> fx.Node:
        """The value as a graph node that gives a tensor, or a list for a sequence."""
        if isinstance(x, fx.Node):
            return x
        if isinstance(x, Listed):
            parts = ([self.tensor(item) for item in x.items],)
            node = self.graph.create_node("call_function", as_list, parts, name="sequence")
            self._examine(node, as_list, parts, {})
            node.meta["kind"] = "sequence"
            return node
        if isinstance(x, Numbers):
            build, items = (
                (number_to_tensor, x.items[0]) if x.scalar else (numbers_to_tensor, list(x.items))
            )
            node = self.function(
                build, items, self.anchor, x.dtype, name="numbers", kind="constant"
            )
            assert isinstance(node, fx.Node)
            return node
        if id(x) not in self._stored:
            path = self._attribute("constant")
            self.root.register_buffer(path, x)
            node = self.graph.create_node("get_attr", path, name=path)
            node.meta["examples"] = (x.to("meta"), x.to("meta"))
            node.meta["kind"] = "constant"
            self._stored[id(x)] = (x, node)
        return self._stored[id(x)][1]

    def absorb(self, inner: "Builder") -> None:
        """Take over what was noticed while a graph inside this one was built."""
        self.freed |= inner.freed
        self.mixes_rows |= inner.mixes_rows
        self.decides |= inner.decides

    def finish(self, outputs: Sequence[Value]) -> fx.GraphModule:
        """The graph module; one output is given bare, several, and those of a body, as a tuple."""
        nodes = tuple(self.tensor(value) for value in outputs)
        self.graph.output(nodes[0] if len(nodes) == 1 and self.outer is None else nodes)
        module = fx.GraphModule(self.root, self.graph)
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        module.recompile()
        return module.eval()

    def _embed(self, arguments: Any) -> Any:
        return fx.node.map_aggregate(
            arguments,
            lambda item: self.tensor(item) if isinstance(item, Tensor | Numbers | Listed) else item,
        )

    def _fold(
        self, target: Callable[..., Any], args: Any, kwargs: Any, examine: Callable[..., Any]
    ) -> Any:
        try:
            try:
                with torch.no_grad(), torch.device("meta"), Work() as work:
                    self._reserve(examine(*_blank(args), **_blank(kwargs)))
                work.check()
            except NotImplementedError:
                pass  # the result depends on values, so it is no larger than they are
            with torch.no_grad():
                return target(*args, **kwargs)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise InvalidModel(
                "model: a constant of the graph cannot be computed, for its shapes do not fit"
            ) from error

    def _reserve(self, values: Any) -> None:
        self.claim(sum(v.numel() * v.element_size() for v in _tensors(values)))

    def claim(self, size: int) -> None:
        """Count the bytes of a constant about to be computed.

        Raises:
            InvalidModel: it, or all of them together, would be too large.
        """
        self._allowance.claim(size)

    def _examine(self, node: fx.Node, target: Callable[..., Any], args: Any, kwargs: Any) -> None:
        results: list[Any] = []
        for witness in (0, 1):

            def value(item: fx.Node, witness: int = witness) -> Any:
                example = item.meta.get("examples", UNKNOWN)[witness]
                if example is None:
                    raise NotImplementedError
                return example

            try:
                with torch.no_grad(), torch.device("meta"):
                    results.append(
                        target(*fx.node.map_arg(args, value), **fx.node.map_arg(kwargs, value))
                    )
            except NotImplementedError:
                results.append(None)
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                if self.fixed_batch is not None:
                    raise FixedBatch from error
                results.append(None)
        check_value(sum(v.numel() * v.element_size() for v in _tensors(results[:1])))
        node.meta["examples"] = tuple(results)

    def _attribute(self, name: str) -> str:
        base = candidate = _identifier(name)
        count = 0
        while hasattr(self.root, candidate) or hasattr(fx.GraphModule, candidate):
            count += 1
            candidate = f"{base}_{count}"
        return candidate


def full_size(shape: Sequence[Number], dtype: torch.dtype) -> int | None:
    """Bytes of a tensor of that shape, or None where a size is known only at run time."""
    if any(isinstance(length, fx.Node) for length in shape):
        return None
    width = torch.empty(0, dtype=dtype).element_size()
    return math.prod(int(length) for length in shape if not isinstance(length, fx.Node)) * width


def literal(items: Sequence[Number], scalar: bool, dtype: torch.dtype) -> Value:
    """Python numbers as a value: a constant where all are known."""
    if any(isinstance(item, fx.Node) for item in items):
        return Numbers(tuple(items), scalar, dtype)
    cast = number_type(dtype)
    known = [cast(item) for item in items if not isinstance(item, fx.Node)]
    return torch.tensor(known[0] if scalar else known, dtype=dtype)


def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "value"
    if keyword.iskeyword(cleaned):
        return f"{cleaned}_"
    return f"_{cleaned}" if cleaned[0].isdigit() else cleaned


def _nodes(arguments: Any) -> list[fx.Node]:
    found: list[fx.Node] = []

    def visit(item: Any) -> Any:
        if isinstance(item, fx.Node):
            found.append(item)
        elif isinstance(item, Numbers):
            found.extend(n for n in item.items if isinstance(n, fx.Node))
        elif isinstance(item, Listed):
            found.extend(_nodes(item.items))
        return item

    fx.node.map_aggregate(arguments, visit)
    return found


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if not isinstance(values, tuple | list):
        return []
    return [tensor for value in values for tensor in _tensors(value)]


def _blank(arguments: Any) -> Any:
    return fx.node.map_aggregate(
        arguments, lambda item: item.to("meta") if isinstance(item, Tensor) else item
    )
