"""A program run as it is."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from .memory import check_memory, take_branch
from .signature import example_inputs, user_inputs


class ProgramBody(nn.Module):
    """A program run as it is, on its tensor inputs alone, in inference.

    Guards on sizes are no part of it, so that a batch of another size fails, if it does, in the
    operator that fixes it.

    Args:
        program: opened by `open_program`.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        signature = program.graph_signature
        self.graph = inference_form(program.graph_module)
        self._out_spec = program.call_spec.out_spec
        self._kept = [spec.kind is OutputKind.USER_OUTPUT for spec in signature.output_specs]
        self._given: list[str | None] = []  # by input of the graph: a weight, a constant, or None
        self._constants: dict[str, Any] = {}
        users = iter(user_inputs(program))
        for index, spec in enumerate(signature.input_specs):
            name: str | None = f"weight_{index}"
            if spec.kind is not InputKind.USER_INPUT:
                path = spec.target or ""
                weight = program.state_dict.get(path, program.constants.get(path))
                self.register_buffer(str(name), None if weight is None else weight.detach())
            else:
                _, value, constant = next(users)
                name = f"constant_{index}" if value is None else None
                self._constants[f"constant_{index}"] = constant
            self._given.append(name)

    def forward(self, *inputs: Tensor) -> Any:
        """The program's outputs, in its own nesting."""
        outputs = self.graph(*self.arguments(inputs))
        kept = [value for value, kept in zip(outputs, self._kept, strict=True) if kept]
        return kept if self._out_spec is None else pytree.tree_unflatten(kept, self._out_spec)

    def arguments(self, inputs: Sequence[Tensor]) -> list[Any]:
        """All inputs of the graph: weights, constants and the caller's tensors."""
        if len(inputs) != self._given.count(None):
            raise TypeError(f"the program takes {self._given.count(None)} inputs")
        tensors = iter(inputs)
        return [self._value(name, tensors) for name in self._given]

    def _value(self, name: str | None, tensors: Iterator[Tensor]) -> Any:
        if name is None:
            return next(tensors)
        return self._constants[name] if name in self._constants else getattr(self, name)


def original(program: ExportedProgram) -> nn.Module:
    """The program as it runs by itself, in inference: from its tensor inputs to its outputs.

    Raises:
        ModelRejected: an input is a number that may vary, or a value would not fit in memory.
    """
    body = ProgramBody(program)
    for integer in (1, 0):  # an index of 1 may lie outside of a table, a length of 0 is none
        examples = example_inputs(program, integer)
        check_memory(body.graph, body.arguments(examples))
        if all(value.is_floating_point() for value in examples):
            break
    return body


_TRAINING: dict[str, Any] = {"training": False, "train": False, "dropout_p": 0.0}


def inference_form(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph, with batch norm and dropout in inference and no counters of batches.

    A condition runs its branch as it is: torch's own operator runs it again, out of sight of
    backward rules, when gradients pass through it.
    """
    copied = fx.GraphModule(module, copy.deepcopy(module.graph))
    for name, child in list(copied.named_children()):
        if isinstance(child, fx.GraphModule):
            setattr(copied, name, inference_form(child))
    for node in list(copied.graph.nodes):
        if node.target is torch.ops.higher_order.cond:
            node.target = take_branch
        if node.target is torch.ops.higher_order.wrap_with_autocast:
            node.update_arg(0, "cpu")
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target is torch.ops.aten.add_.Tensor and not node.users:
            (counter, *_) = node.args
            if isinstance(counter, fx.Node) and counter.op == "placeholder":
                copied.graph.erase_node(node)  # `num_batches_tracked`
                continue
        names = [argument.name for argument in node.target._schema.arguments]
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        for position, name in enumerate(names):
            own = name == "training" and given.get("running_mean") is None
            if name not in _TRAINING or name not in given or own:
                continue  # without statistics, a batch's own are used in inference too
            if position < len(node.args):
                node.update_arg(position, _TRAINING[name])
            else:
                node.update_kwarg(name, _TRAINING[name])
    copied.recompile()
    return copied
