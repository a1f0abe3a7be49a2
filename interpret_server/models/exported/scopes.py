"""Names layers after the modules that a program's nodes say they came from."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..torchscript.recorder import Recorder
from ..torchscript.values import Item, Value
from .body import ProgramBody
from .document import PATH

_EMPTY = "_empty_nn_module_stack_from_metadata_hook"


@dataclass
class _Call:
    """One call of a module that the walk is inside of."""

    key: str
    path: str
    since: int
    nested: bool = False
    output: Item = None
    leaves_it: bool = False  # whether `output` is used outside of the call


class Scopes:
    """Follows the walk into modules and out of them.

    The value of a module is the last one of its nodes that is used outside of it.

    Args:
        recorder: where names go.
        graph: of the program.
    """

    def __init__(self, recorder: Recorder, graph: fx.Graph) -> None:
        self._recorder = recorder
        self._open: list[_Call] = []
        self._stacks = {node: _stack(node) for node in graph.nodes}

    def enter(self, node: fx.Node) -> None:
        """The walk comes to a node."""
        stack = self._stacks[node]
        if stack is None:
            return
        shared = 0
        for call, (key, _) in zip(self._open, stack, strict=False):
            if call.key != key:
                break
            shared += 1
        self._close(shared)
        for key, path in stack[shared:]:
            self._open.append(_Call(key, path, self._recorder.mark))
        self._recorder.scope = self._open[-1].path if self._open else ""

    def computed(self, node: fx.Node, item: Item) -> None:
        """What a node gave."""
        if not isinstance(item, Value) or not item.is_tensor or self._stacks[node] is None:
            return
        for depth, call in enumerate(self._open):
            leaves_it = any(not self._inside(user, depth) for user in node.users)
            if leaves_it or not call.leaves_it:
                call.output, call.leaves_it = item, leaves_it

    def _inside(self, node: fx.Node, depth: int) -> bool:
        stack = self._stacks[node]
        if stack is None:
            return node.op != "output"
        keys = [call.key for call in self._open[: depth + 1]]
        return [key for key, _ in stack[: depth + 1]] == keys

    def close(self) -> None:
        """The walk is over."""
        self._close(0)
        self._recorder.scope = ""

    def _close(self, depth: int) -> None:
        while len(self._open) > depth:
            call = self._open.pop()
            computed = self._recorder.mark > call.since
            if computed:
                self._recorder.name_output(call.path, call.output, call.since, leaf=not call.nested)
                for outer in self._open:
                    outer.nested = True


def module_values(body: ProgramBody, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """What the modules without parts give in a program's own execution, by path.

    Of a module that is called several times, the first call counts.

    Args:
        body: the program.
        inputs: its tensor inputs.
    """
    stacks = {node: _stack(node) for node in body.graph.graph.nodes}
    parents = {path for stack in stacks.values() for _, path in (stack or [])[:-1]}
    return _Reader(body.graph, stacks, parents).read(body.arguments(inputs))


class _Reader(fx.Interpreter):
    def __init__(
        self,
        graph: fx.GraphModule,
        stacks: Mapping[fx.Node, list[tuple[str, str]] | None],
        parents: Collection[str],
    ) -> None:
        super().__init__(graph)
        self._stacks, self._parents = stacks, parents
        self._calls: dict[str, str] = {}
        self._values: dict[str, Tensor] = {}

    def read(self, arguments: Sequence[Any]) -> dict[str, Tensor]:
        with torch.no_grad():
            self.run(*arguments)
        return self._values

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        stack = self._stacks.get(n)
        if stack and isinstance(value, Tensor):
            key, path = stack[-1]
            if path not in self._parents and self._calls.setdefault(path, key) == key:
                self._values[path] = value
        return value


def _stack(node: fx.Node) -> list[tuple[str, str]] | None:
    """The modules around a node, outermost first: a key for each call, and its path."""
    stack: Any = node.meta.get("nn_module_stack")
    if not stack:
        return None
    if _EMPTY in stack:
        return None
    found = [
        (str(key), _path(str(entry[0])))
        for key, entry in stack.items()
        if isinstance(entry, tuple) and entry[0]
    ]
    return [(key, path) for key, path in found if path]


def _path(path: str) -> str:
    """`layer1.0`, from what several versions of torch write for it; else nothing.

    A path becomes part of the Python that FX generates, so that quotes and the like are no path.
    """
    for prefix in ("L['self'].", "L__self__.", "L__self___"):
        path = path.removeprefix(prefix)
    path = path.partition("@")[0]
    return path if PATH.fullmatch(path) and ".." not in f".{path}." else ""
