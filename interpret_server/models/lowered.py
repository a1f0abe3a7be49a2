"""What an importer hands over: a differentiable, named graph of a model file."""

from dataclasses import dataclass, field

import torch
from torch import fx


class Unlowerable(Exception):
    """The file cannot become a graph; the message names the operator or construct in the way."""


class Stateful(Unlowerable):
    """The file changes its own state as it runs; the message names what it changes."""


@dataclass
class Lowered:
    """A model file as an FX graph in canonical form.

    Canonical form: activations, softmax, convolutions, linear, pooling, dropout and normalisation
    layers are `call_module` nodes, one instance per call site, never in place; everything else is
    `call_function`. Every node with a tensor value carries `node.meta["kind"]`, a lowercase word
    such as `relu`, `conv2d`, `reshape` or `add`.

    Args:
        graph: `forward(*inputs)` gives the file's outputs: a tensor, tuple, list or dict.
        input_names: the file's names of the inputs, in order.
        output_names: the file's names of the outputs, in order; empty where it has none.
        layers: layer name -> node name, in order of execution.
        origins: layer name -> the file's own name of that value, where it has one.
        notes: what a user should know, one sentence each.
        mixes_rows: in the file's own execution the rows of a batch influence each other, so that
            it is compared one row at a time.
        row_by_row: in the graph too, so that it is to be run one row at a time.
        precision: the coarsest type that the file computes in, where it is coarser than its
            inputs: a half precision, or int8 for quantised values.
    """

    graph: fx.GraphModule
    input_names: tuple[str, ...]
    output_names: tuple[str, ...] = ()
    layers: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mixes_rows: bool = False
    row_by_row: bool = False
    precision: torch.dtype | None = None
