"""Walks TorchScript graphs with example values, module by module, and records what they compute."""

import re
import time
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from ..lowered import Lowered, Stateful, Unlowerable
from .operators import Operators
from .quantised import Quantiser
from .recorder import Recorder
from .repairs import inline_functions
from .structure import Structure
from .values import Instance, Item, Origin, Part, Value, lift

_CALL = "interpret::CallMethod"
IMPORT_SECONDS = 120.0  # that one walk may take
MOST_STEPS = 400_000  # operations of TorchScript, those on numbers and lists included
_ITERATIONS = 10_000  # of all loops together, before one is taken to be endless

_SERIALIZED = "code/__torch__"  # code that torch.jit.save wrote
_LINE = re.compile(r'File "([^"]+)", line (\d+)')

Environment = dict[str, Item]


class Walker:
    """One walk over an archive.

    Args:
        archive: in evaluation mode, on the CPU.
        examples: one tensor per input.
        straight_through: whether quantised arithmetic becomes rounding with a gradient.
    """

    def __init__(
        self,
        archive: torch.jit.ScriptModule,
        examples: Sequence[Tensor],
        straight_through: bool = False,
    ) -> None:
        self._archive = archive
        self._arguments = archive._c._get_method("forward").schema.arguments[1:]
        for argument in self._arguments[: len(examples)]:
            if "Tensor" not in str(argument.type) or "List" in str(argument.type):
                raise Unlowerable(f"the input {argument.name} is a {argument.type}, not a tensor")
        if len(examples) > len(self._arguments):
            raise Unlowerable(f"the model takes {len(self._arguments)} inputs")
        names = [argument.name for argument in self._arguments]
        self._recorder = Recorder(names[: len(examples)], examples)
        self._structure = Structure(self._recorder)
        self._operators = Operators(self._recorder, self._structure)
        self._quantiser = Quantiser(self._operators, straight_through)
        self._attributes: dict[tuple[str, str], Item] = {}
        self._written: set[tuple[str, str]] = set()
        self._iterations = 0
        self._steps = 0
        self._deadline = time.monotonic() + IMPORT_SECONDS
        self._nested = False  # whether the module being walked has layers inside

    def walk(self) -> Lowered:
        """The archive's `forward` as a graph."""
        inputs: list[Item] = list(self._recorder.inputs)
        for argument in self._arguments[len(inputs) :]:
            if not argument.has_default_value():
                raise Unlowerable(f"the input {argument.name} has no example")
            inputs.append(lift(argument.default_value))
        try:
            outputs = self._method(Part(self._archive._c, ""), "forward", inputs)
            return self._recorder.finish(outputs)
        except RecursionError as error:
            raise Unlowerable("the model's code is nested too deeply") from error

    # Modules

    def _method(self, part: Part, name: str, arguments: Sequence[Item]) -> Item:
        graph = part.module._get_method(name).graph.copy()
        inline_functions(graph, keep=_CALL)
        environment: Environment = {
            value.debugName(): item
            for value, item in zip(graph.inputs(), [part, *arguments], strict=True)
        }
        results = self._block(graph, environment)
        return results[0] if len(results) == 1 else tuple(results)

    def _call(self, node: torch._C.Node, items: Sequence[Item]) -> Item:
        part, *arguments = items
        if not isinstance(part, Part):
            raise Unlowerable(f"a method of a TorchScript class is called{self._recorder.where()}")
        caller, nested, type_name = self._recorder.scope, self._nested, self._recorder.type_name
        if part.path == caller:
            return self._method(part, node.s("name"), arguments)
        since = self._recorder.mark
        self._recorder.scope, self._nested = part.path, False
        self._recorder.type_name = part.module._type().name()  # type: ignore[attr-defined]
        output = self._method(part, node.s("name"), arguments)
        self._recorder.name_output(part.path, output, since, leaf=not self._nested)
        self._recorder.scope, self._nested = caller, nested or self._recorder.mark > since
        self._recorder.type_name = type_name
        return output

    def _get_attribute(self, owner: Item, name: str) -> Item:
        if isinstance(owner, Instance):
            return owner[name]
        if not isinstance(owner, Part):
            raise Unlowerable(f"an attribute {name} of no module is read{self._recorder.where()}")
        key = (owner.path, name)
        if key not in self._attributes:
            self._attributes[key] = self._lift(owner, name)
        return self._attributes[key]

    def _lift(self, owner: Part, name: str) -> Item:
        path = f"{owner.path}.{name}" if owner.path else name
        attribute = owner.module.getattr(name)  # type: ignore[attr-defined]
        if isinstance(attribute, torch._C.ScriptModule):
            return Part(attribute, path)
        if name == "training" and isinstance(attribute, bool):
            return Value(False)
        item = lift(attribute, path)
        self._own(item)
        return item

    def _own(self, item: Item) -> None:
        if isinstance(item, Value):
            if item.storage:
                self._recorder.owned.add(item.storage)
        elif isinstance(item, (list, tuple, dict)):
            self._structure.own.add(id(item))
            for element in item.values() if isinstance(item, dict) else item:
                self._own(element)

    def _set_attribute(self, owner: Item, name: str, value: Item) -> None:
        if isinstance(owner, Instance):
            owner[name] = value
            return
        if not isinstance(owner, Part):
            raise Unlowerable(f"prim::SetAttr sets {name} of no module{self._recorder.where()}")
        key = (owner.path, name)
        if key in self._attributes and key not in self._written:
            path = ".".join(key).lstrip(".")
            raise Stateful(f"the model keeps state between calls: it changes its own {path}")
        self._written.add(key)
        self._attributes[key] = value

    # Code

    def _block(self, block: Any, environment: Environment) -> list[Item]:
        for node in block.nodes():
            results = self._node(node, environment)
            names = [output.debugName() for output in node.outputs()]
            environment.update(zip(names, results, strict=len(names) > 0))
        return [environment[value.debugName()] for value in block.outputs()]

    def _node(self, node: torch._C.Node, environment: Environment) -> Sequence[Item]:
        self._count()
        self._recorder.place = lambda: _place(node)
        kind = node.kind()
        items = [environment[value.debugName()] for value in node.inputs()]
        match kind:
            case "prim::Constant":
                return [self._constant(node)]
            case "prim::GetAttr":
                return [self._get_attribute(items[0], node.s("name"))]
            case "prim::SetAttr":
                self._set_attribute(items[0], node.s("name"), items[1])
                return []
            case "prim::If":
                return self._if(node, items[0], environment)
            case "prim::Loop":
                return self._loop(node, items, environment)
            case "prim::TupleUnpack" | "prim::ListUnpack":
                return list(items[0])
            case "prim::RaiseException":
                raise Unlowerable(f"the model raises an error on the example{self._where()}")
            case "prim::Enter" | "prim::Exit":
                return [self._context(node, entering=kind == "prim::Enter")]
            case "prim::isinstance":
                return [self._is_instance(node, items[0])]
        if kind == _CALL:
            return [self._call(node, items)]
        try:
            result = self._operator(kind, node, items)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise Unlowerable(f"{kind} is not supported in this form{self._where()}") from error
        return result if node.outputsSize() > 1 else [result]

    def _count(self) -> None:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise Unlowerable(f"the model takes more than {MOST_STEPS} operations")
        if time.monotonic() > self._deadline:
            raise Unlowerable(f"the model takes longer than {IMPORT_SECONDS} s to walk through")

    def _operator(self, kind: str, node: torch._C.Node, items: Sequence[Item]) -> Any:
        if self._quantiser.takes(kind, items):
            return self._quantiser.run(kind, node.schema(), items)
        result = self._structure.run(kind, items)
        if result is not NotImplemented:
            return result
        schema = node.schema()
        if schema.startswith("(no schema)") or kind.startswith("prim::"):
            raise Unlowerable(f"{kind} is not supported{self._where()}")
        return self._operators.run(torch._C.parse_schema(schema), items)

    def _where(self) -> str:
        return self._recorder.where()

    def _constant(self, node: torch._C.Node) -> Item:
        if node.mustBeNone():
            return Value(None)
        if str(node.output().type()) == "Function":
            raise Unlowerable(f"a function is used as a value{self._where()}")
        item = lift(node.output().toIValue())
        if isinstance(item, Value):
            self._own(item)
        return item

    def _context(self, node: torch._C.Node, *, entering: bool) -> Item:
        """`with torch.no_grad()`: what is computed inside carries no gradient."""
        (manager,) = node.inputs()
        if not str(manager.type()).endswith("grad_mode.no_grad"):
            raise Unlowerable(f"{node.kind()} is supported for torch.no_grad alone{self._where()}")
        self._recorder.without_gradient += 1 if entering else -1
        return Value(None)

    def _is_instance(self, node: torch._C.Node, item: Item) -> Item:
        types = {str(kind) for kind in node.tys("types")}
        match item:
            case list() | tuple() | dict():
                kinds = {type(item).__name__.capitalize()}
                return Value(any(name.startswith(tuple(kinds)) for name in types))
            case Value(value=None):
                return Value("NoneType" in types)
            case Value(value=Tensor()):
                return Value("Tensor" in types)
            case Value(value=plain):
                return Value(type(plain).__name__ in types)
        raise Unlowerable(f"prim::isinstance is not supported{self._where()}")

    def _if(self, node: torch._C.Node, condition: Item, environment: Environment) -> Sequence[Item]:
        blocks = list(node.blocks())
        if isinstance(condition, Value) and condition.origin >= Origin.DATA:
            # An assertion on data: only a failing example could take the branch that raises.
            passing = [block for block in blocks if not _raises(block)]
            taken = 0 if condition.value else 1
            if len(passing) == 1 and passing[0] is blocks[taken]:
                self._recorder.note(f"a check of the data is left out{self._where()}")
                return self._block(blocks[taken], environment)
        taken = 0 if self._recorder.static(condition, "prim::If") else 1
        return self._block(blocks[taken], environment)

    def _loop(
        self, node: torch._C.Node, items: Sequence[Item], environment: Environment
    ) -> Sequence[Item]:
        limit, condition, *carried = items
        (body,) = node.blocks()
        names = [value.debugName() for value in body.inputs()]
        count = self._recorder.static(limit, "prim::Loop")
        step = 0
        while step < count and self._recorder.static(condition, "prim::Loop"):
            environment.update(zip(names, [Value(step), *carried], strict=True))
            condition, *carried = self._block(body, environment)
            step += 1
            self._iterations += 1
            if self._iterations > _ITERATIONS:
                raise Unlowerable(f"prim::Loop does not come to an end{self._where()}")
        return carried


def _raises(block: Any) -> bool:
    return any(node.kind() == "prim::RaiseException" for node in block.nodes())


def _place(node: torch._C.Node) -> str:
    """`model.py, line 12`: where the author wrote a node, if the archive tells."""
    found = _LINE.findall(str(node.sourceRange()))
    written = [(path, line) for path, line in found if not path.startswith(_SERIALIZED)]
    return f"{PurePath(written[0][0]).name}, line {written[0][1]}" if written else ""
