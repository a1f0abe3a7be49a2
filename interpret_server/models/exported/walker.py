"""Walks a program's graph with example values and records what it computes."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from ..lowered import Lowered, Unlowerable
from ..torchscript.operators import Operators
from ..torchscript.recorder import Recorder
from ..torchscript.structure import Structure
from ..torchscript.values import DTYPE_CODES, Item, Value, concrete
from .composite import COMPOSITES
from .memory import check_result
from .regions import REGIONS
from .scopes import Scopes
from .signature import output_names, user_inputs

_CHECKS = frozenset(
    {
        "_assert_async",
        "_assert_scalar",
        "_assert_tensor_metadata",
        "_functional_assert_async",
        "_functional_assert_scalar",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
        "_functional_sym_constrain_range",
        "_functional_sym_constrain_range_for_size",
    }
)
_FRESH = frozenset({"lift_fresh", "lift_fresh_copy", "lift"})
_REMEMBERED = frozenset({"add", "gt", "mul"})
_NODES = 200_000

Environment = dict[fx.Node, Item]


class Walker:
    """One walk over a program.

    Args:
        program: opened by `open_program`.
        examples: one tensor per tensor input.
        straight_through: whether quantisation passes gradients as if it did not round.
    """

    def __init__(
        self,
        program: ExportedProgram,
        examples: Sequence[Tensor],
        *,
        straight_through: bool = False,
    ) -> None:
        self._program = program
        self.straight_through = straight_through
        self.precision: torch.dtype | None = None  # as `Lowered` has it
        self.mixes_rows = False
        self._inputs = user_inputs(program)
        names = [name for name, value, _ in self._inputs if value is not None]
        if len(examples) != len(names):
            raise Unlowerable(f"the program takes {len(names)} inputs, not {len(examples)}")
        self.recorder = Recorder(names, examples)
        self.structure = Structure(self.recorder)
        self.operators = Operators(self.recorder, self.structure)
        self.module: Any = program.graph_module
        self._count = 0
        self._made: dict[int, tuple[str, list[Item], Item]] = {}

    def walk(self) -> Lowered:
        """The program's outputs as a graph.

        Raises:
            Unlowerable: naming the operator or construct in the way.
        """
        graph = self.module.graph
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        items = self._arguments(placeholders)
        outputs = self.run(self.module, items, scopes=Scopes(self.recorder, graph))
        lowered = self.recorder.finish(self._nested(outputs))
        lowered.output_names = output_names(self._program)
        lowered.precision = self.precision
        lowered.mixes_rows = lowered.row_by_row = self.mixes_rows
        return lowered

    def _arguments(self, placeholders: Sequence[fx.Node]) -> list[Item]:
        specs = self._program.graph_signature.input_specs
        given = iter(self.recorder.inputs)
        users = iter(self._inputs)
        state, constants = self._program.state_dict, self._program.constants
        items: list[Item] = []
        for _, spec in zip(placeholders, specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                _, value, constant = next(users)
                items.append(next(given) if value is not None else self.lift(constant))
                continue
            path = spec.target or ""
            tensor = state.get(path, constants.get(path))
            if not isinstance(tensor, Tensor):
                raise Unlowerable(f"the program uses {path!r}, which is no tensor")
            weight = Value(tensor.detach(), path=path)
            self.recorder.owned.add(weight.storage)
            items.append(weight)
        return items

    def _nested(self, outputs: Sequence[Item]) -> Item:
        specs = self._program.graph_signature.output_specs
        found = [
            item
            for item, spec in zip(outputs, specs, strict=True)
            if spec.kind is OutputKind.USER_OUTPUT
        ]
        spec = self._program.call_spec.out_spec
        if spec is None:
            raise Unlowerable("the program does not tell how its outputs nest")
        nested: Item = pytree.tree_unflatten(found, spec)
        return nested

    # Graphs

    def run(self, module: Any, items: Sequence[Item], scopes: Scopes | None = None) -> list[Item]:
        """The outputs of a graph, called on `items`."""
        environment: Environment = {}
        given = iter(items)
        for node in module.graph.nodes:
            self._count += 1
            if self._count > _NODES:
                raise Unlowerable(f"the program has more than {_NODES} operators")
            if node.op == "placeholder":
                environment[node] = next(given)
            elif node.op == "get_attr":
                environment[node] = self._attribute(module, str(node.target))
            elif node.op == "output":
                outputs = self._item(node.args[0], environment)
                if scopes is not None:
                    scopes.close()
                return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
            else:
                if scopes is not None:
                    scopes.enter(node)
                environment[node] = self._call(module, node, environment)
                if scopes is not None:
                    scopes.computed(node, environment[node])
        raise Unlowerable("the program has no outputs")

    def _attribute(self, module: Any, path: str) -> Item:
        value = operator.attrgetter(path)(module)
        if isinstance(value, Tensor):
            constant = Value(value.detach(), path=path)
            self.recorder.owned.add(constant.storage)
            return constant
        return value  # the body of a region

    def _item(self, argument: Any, environment: Environment) -> Item:
        if isinstance(argument, fx.Node):
            return environment[argument]
        if isinstance(argument, (list, tuple)):
            items = [self._item(element, environment) for element in argument]
            return items if isinstance(argument, list) else tuple(items)
        if isinstance(argument, dict):
            return {key: self._item(element, environment) for key, element in argument.items()}
        return self.lift(argument)

    @staticmethod
    def lift(constant: Any) -> Item:
        """An item of a plain constant; data types are numbers, as in TorchScript."""
        if isinstance(constant, Value):
            return constant
        if isinstance(constant, (list, tuple)):
            return [Walker.lift(element) for element in constant]
        if isinstance(constant, torch.dtype):
            return Value(DTYPE_CODES.get(constant, constant))
        return Value(constant)

    # Calls

    def _call(self, module: Any, node: fx.Node, environment: Environment) -> Item:
        target: Any = node.target
        items = [self._item(argument, environment) for argument in node.args]
        keywords = {key: self._item(value, environment) for key, value in node.kwargs.items()}
        try:
            if target is operator.getitem:
                return items[0][items[1].value]
            if isinstance(target, torch._ops.HigherOrderOperator):
                return self._region(target, items, keywords)
            if isinstance(target, torch._ops.OpOverload):
                given = fx.node.map_arg(
                    (node.args, dict(node.kwargs)), lambda item: _example(environment[item])
                )
                check_result(target, *given)
                return self._overload(target, items, keywords)
            return self.structure.python(target, items)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise Unlowerable(
                f"{target} is not supported in this form{self.recorder.where()}"
            ) from error

    def _region(self, target: Any, items: Sequence[Item], keywords: dict[str, Item]) -> Item:
        name = target.name() if callable(target.name) else target.name
        region = REGIONS.get(str(name))
        if region is None:
            raise Unlowerable(f"torch.{name} has no graph form{self.recorder.where()}")
        return region(self, *items, **keywords)

    def _overload(self, target: Any, items: Sequence[Item], keywords: dict[str, Item]) -> Item:
        namespace, name = target._schema.name.split("::")
        if name in _CHECKS:
            return Value(None)
        if name in _FRESH:
            return items[0]
        arguments = self._complete(target._schema, items, keywords)
        if namespace == "aten" and name == "sym_size":
            return self.structure.size(arguments)
        if namespace == "aten" and name == "sym_numel":
            return self.structure.numel(arguments)
        if namespace == "aten" and name in ("item", "_local_scalar_dense"):
            return self.structure.run("aten::item", arguments)
        composite = COMPOSITES.get(f"{namespace}::{name}")
        if composite is not None:
            names = [argument.name for argument in target._schema.arguments]
            result = composite(self, dict(zip(names, arguments, strict=True)))
            if result is not NotImplemented:
                return result
        result = self.operators.run(target._schema, arguments)
        if name in _REMEMBERED:
            self._made[id(result)] = (name, arguments, result)
        return result

    def made_by(self, item: Item) -> tuple[str, list[Item]] | None:
        """The comparison, sum or product that gave an item, and its arguments."""
        found = self._made.get(id(item))
        return None if found is None else found[:2]

    def _complete(
        self, schema: Any, items: Sequence[Item], keywords: dict[str, Item]
    ) -> list[Item]:
        """All arguments in the order of the schema, left-out ones with their defaults."""
        complete: list[Item] = list(items)
        for argument in schema.arguments[len(items) :]:
            if argument.name in keywords:
                complete.append(keywords[argument.name])
            elif argument.has_default_value():
                complete.append(self.lift(argument.default_value))
            else:
                raise Unlowerable(f"{schema.name} lacks its argument {argument.name}")
        return complete

    def call(self, target: Any, *items: Item) -> Item:
        """Call an operator of PyTorch on items or plain constants; the rest are its defaults."""
        given = [self.lift(item) for item in items]
        return self.operators.run(target._schema, self._complete(target._schema, given, {}))


def _example(item: Item) -> Any:
    return concrete(item) if isinstance(item, (Value, list, tuple, dict)) else item
