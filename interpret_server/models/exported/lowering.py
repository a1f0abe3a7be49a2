"""A program as a graph in canonical form."""

from collections.abc import Sequence

from torch import Tensor
from torch.export import ExportedProgram

from ..lowered import Lowered, Unlowerable
from .batch import free_batch
from .signature import example_inputs, fixed_batch
from .walker import Walker


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


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
