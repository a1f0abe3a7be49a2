"""What a program takes and gives: its inputs, example values for them, and names of its outputs."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from ...errors import ModelRejected
from ..inputs import FileInput
from ..lowered import Unlowerable

_ELEMENTS, _ROWS = 1 << 28, 2


def user_inputs(program: ExportedProgram) -> list[tuple[str, Tensor | None, Any]]:
    """The program's own inputs in order: name, and either a shape-carrying tensor or a constant."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found: list[tuple[str, Tensor | None, Any]] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        if isinstance(spec.arg, TensorArgument):
            found.append((spec.arg.name, nodes[spec.arg.name].meta["val"], None))
        elif isinstance(spec.arg, ConstantArgument):
            found.append((spec.arg.name, None, spec.arg.value))
        else:
            raise ModelRejected(f"the input {spec.arg.name!r} is a number, which is not served")
    return found


def inputs(program: ExportedProgram) -> tuple[FileInput, ...]:
    """The program's tensor inputs in order, nested ones taken apart; None for a free size.

    Raises:
        ModelRejected: an input is a number that may vary.
    """
    return tuple(
        FileInput(
            name,
            tuple(int(size) if isinstance(size, int) else None for size in value.shape),
            value.dtype,
        )
        for name, value, _ in user_inputs(program)
        if value is not None
    )


def output_names(program: ExportedProgram) -> tuple[str, ...]:
    """Names of the program's outputs in order: keys of its dictionary, else of its values."""
    flat = [
        getattr(spec.arg, "name", "") or f"output_{index}"
        for index, spec in enumerate(program.graph_signature.output_specs)
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    spec = program.call_spec.out_spec
    if spec is None:
        return tuple(flat)
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(flat, spec))
    names = []
    for path, name in paths:
        keys = [str(key.key) for key in path if isinstance(key, pytree.MappingKey)]
        names.append(".".join(keys) if keys and len(keys) == len(path) else str(name))
    return tuple(names)


def fixed_batch(program: ExportedProgram) -> int | None:
    """The number of rows that a program was exported for; None where it is free."""
    shapes = [value.shape for _, value, _ in user_inputs(program) if value is not None]
    sizes = [shape[0] for shape in shapes if len(shape)]
    if not all(isinstance(size, int) for size in sizes) or len(set(sizes)) != 1:
        return None
    return int(sizes[0])


def example_inputs(program: ExportedProgram, integer: int = 0) -> list[Tensor]:
    """Inputs of the sizes that a program was exported with, but two rows where rows are free.

    Args:
        program: opened by `open_program`.
        integer: the value of integer inputs.

    Raises:
        ModelRejected: they would be larger than can be served.
    """
    values = [(name, value) for name, value, _ in user_inputs(program) if value is not None]
    sizes = _symbols(program, [value for _, value in values])
    noise = torch.Generator().manual_seed(0)
    examples = []
    for name, value in values:
        shape = [_size(size, sizes) for size in value.shape]
        if math.prod(shape) > _ELEMENTS:
            raise ModelRejected(f"the input {name!r} is too large: {shape}")
        if value.dtype.is_floating_point:
            examples.append(torch.rand(shape, generator=noise).to(value.dtype))
        else:
            examples.append(torch.full(shape, integer, dtype=value.dtype))
    return examples


def _symbols(program: ExportedProgram, values: Sequence[Any]) -> dict[Any, int]:
    """A size for every free one: that of the export, and few rows."""
    sizes: dict[Any, int] = {}
    batches = set()
    for value in values:
        for axis, size in enumerate(value.shape):
            if isinstance(size, int):
                continue
            expression = size.node.expr
            for symbol in expression.free_symbols:
                sizes.setdefault(symbol, 0)
            if expression.is_Symbol:
                sizes[expression] = size.node.hint or sizes[expression]
                if axis == 0:
                    batches.add(expression)
    for symbol, size in sizes.items():
        limits = program.range_constraints.get(symbol)
        lower = int(limits.lower) if limits is not None else 2
        wanted = max(_ROWS if symbol in batches or not size else size, lower)
        if limits is not None and limits.upper < wanted:
            wanted = int(limits.upper)
        sizes[symbol] = wanted
    return sizes


def _size(size: Any, symbols: dict[Any, int]) -> int:
    if isinstance(size, int):
        return size
    try:
        return int(size.node.expr.xreplace(symbols))
    except TypeError as error:
        raise Unlowerable("a size of the inputs cannot be told") from error
