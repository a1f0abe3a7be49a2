"""A program as a graph in canonical form."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ...errors import ModelRejected
from ..lowered import Lowered, Unlowerable
from .batch import free_batch
from .program import user_inputs
from .walker import Walker

_ELEMENTS, _ROWS = 1 << 28, 2


def lower(
    program: ExportedProgram,
    examples: Sequence[Tensor] | None = None,
    *,
    straight_through: bool = False,
) -> Lowered:
    """Turn a program into a graph that gives the same outputs.

    Layers are named after modules: `layer1.0.conv1`; a module called again gives
    `layer1.0.relu:1`, an operator of no module of its own `layer1.0.add`, and a container the
    value of its last part. Dropout and batch normalisation take their inference form, core ATen
    and backend operators become the layers that they came from, in-place operations become
    ordinary ones, checks are left out, and tensors are made on the device of the first input.
    Weights are shared with the program. A batch size that the program fixes is made free where
    running it at another size proves that right, which a note tells.

    Args:
        program: opened by `open_program`.
        examples: one tensor per tensor input; made up, of the exported sizes, where left out.
        straight_through: whether quantisation passes gradients as if it did not round.

    Raises:
        Unlowerable: naming the operator or construct in the way.
        ModelRejected: an input is a number that may vary, or larger than can be served.
    """
    given = list(examples) if examples is not None else example_inputs(program, 1)
    try:
        lowered = Walker(program, given, straight_through=straight_through).walk()
    except Unlowerable:  # an index of 1 may lie outside of a table, a length of 0 is none
        if examples is not None or all(value.is_floating_point() for value in given):
            raise
        given = example_inputs(program, 0)
        lowered = Walker(program, given, straight_through=straight_through).walk()
    rows = fixed_batch(program)
    if rows is not None:
        freed = free_batch(lowered.graph, rows, given)
        if freed:
            lowered.notes.append(
                f"The file was exported for {_rows(rows)} at a time; its sizes were made to follow "
                "the batch, which gives every row the same."
            )
        elif freed is False:
            lowered.notes.append(f"The file was exported for {_rows(rows)} at a time.")
    return lowered


def fixed_batch(program: ExportedProgram) -> int | None:
    """The number of rows that a program was exported for; None where it is free."""
    shapes = [value.shape for _, value, _ in user_inputs(program) if value is not None]
    sizes = [shape[0] for shape in shapes if len(shape)]
    if not all(isinstance(size, int) for size in sizes) or len(set(sizes)) != 1:
        return None
    return int(sizes[0])


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


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
        if torch.Size(shape).numel() > _ELEMENTS:
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
