"""ONNX files as differentiable FX graphs, and what runs the originals beside them."""

from pathlib import Path

import torch
from onnx import ModelProto
from torch import Tensor, fx, nn

from ...errors import InvalidModel
from ..lowered import Lowered, Unlowerable
from .builder import FixedBatch
from .carried import holds_integers
from .file import Header, TensorInfo, header, load, read_header
from .importer import SIZES, Importer
from .limits import LIMITS, Deadline, Limits
from .rows import RowByRow
from .runtime import Lacking, OnnxRuntime, Reference, reference, runtime

__all__ = [
    "Header",
    "Lacking",
    "OnnxRuntime",
    "Reference",
    "TensorInfo",
    "Unlowerable",
    "import_model",
    "read_header",
    "reference",
    "runtime",
    "to_module",
]


_STRAIGHT_THROUGH = (
    "The file quantises its activations; gradients pass straight through the rounding, except "
    "where it saturates."
)
_NO_GRADIENT = (
    "The file quantises its activations, which lets no gradient through; the manifest's "
    "straight_through asks for gradients as if nothing were rounded."
)


def import_model(path: Path, *, straight_through: bool = False, limits: Limits = LIMITS) -> Lowered:
    """An ONNX file in canonical form, for inference, with a batch axis of any size.

    Batch normalisation and dropout take their inference form, float16 becomes float32, and a batch
    size that the file fixes is made free where its shapes allow it; the notes say so. Layers
    are named after modules where the file tells them (`names.by_modules`), else after nodes with
    names of their own, else after values.

    A dynamic quantisation takes its range over each row, as the file does for a row alone.

    Args:
        path: of the file.
        straight_through: rounding to integers passes gradients on unchanged, except where it
            saturates; without it, a network of quantised activations is not differentiable.
        limits: of the file, its graph and the time that importing it takes.

    Raises:
        Unlowerable: naming the operator or construct that is not supported.
        InvalidModel: the file is corrupt, of another format, exceeds a limit, or asks for too large
            constants.
    """
    deadline = Deadline(limits.seconds)
    model = load(path, limits)
    failure: Unlowerable | InvalidModel | None = None
    found: Lowered | None = None
    for sizes in SIZES if _has_free_sizes(model) else SIZES[:1]:
        try:
            lowered, any_batch = _imported(model, sizes, straight_through, limits, deadline)
        except (Unlowerable, InvalidModel) as error:
            failure = failure or error
            continue
        found = found or lowered
        if any_batch and not lowered.row_by_row:  # else perhaps only at sizes that are too large
            return lowered
    if found is None:
        assert failure is not None
        raise failure
    return found


def _has_free_sizes(model: ModelProto) -> bool:
    return any(None in (info.shape or ())[1:] for info in header(model).inputs)


def _imported(
    model: ModelProto,
    sizes: tuple[tuple[int, int], ...],
    straight_through: bool,
    limits: Limits,
    deadline: Deadline,
) -> tuple[Lowered, bool]:
    """The graph, and whether it takes any batch size."""
    notes: list[str] = []
    wanted = {"free_batch": True, "rows_apart": True}
    while True:
        importer = Importer(
            model,
            **wanted,
            faithful=False,
            straight_through=straight_through,
            sizes=sizes,
            limits=limits,
            deadline=deadline,
        )
        try:
            lowered = importer.run()
            break
        except FixedBatch:
            wanted["free_batch"] = False
        except RowByRow:
            wanted["rows_apart"] = False
    if not wanted["free_batch"]:
        notes.append(
            f"The file fixes the batch size to {importer.fixed}; its shapes allow no other."
        )
    if importer.builder.mixes_rows:
        lowered.mixes_rows = True
        lowered.row_by_row |= not wanted["rows_apart"]
        notes.append(
            "The file quantises with a range over all rows of a batch; each row is computed as "
            "the file computes it alone."
        )
    if importer.builder.freed:
        notes.append(
            f"The file fixes the batch size to {importer.fixed}; its shapes were made to follow "
            "the input's."
        )
    if any(holds_integers(node) for node in lowered.graph.graph.nodes):
        lowered.precision = torch.int8
        notes.append(_STRAIGHT_THROUGH if straight_through else _NO_GRADIENT)
    if importer.halves:
        lowered.precision = lowered.precision or torch.float16
        notes.append("The file's float16 weights and values are computed in float32.")
    if lowered.precision is None and _rounds_doubles(importer, lowered):
        lowered.precision = torch.float32
    lowered.notes.extend(notes)
    return lowered, wanted["free_batch"]


def _rounds_doubles(importer: Importer, lowered: Lowered) -> bool:
    """Whether a file takes float64 and computes in float32, which converters of tables write."""
    dtypes = [info.dtype for info in importer.header.inputs]
    nodes = lowered.graph.graph.nodes if torch.float64 in dtypes else ()
    return any(importer.builder.dtype(node) is torch.float32 for node in nodes)


class _Tuple(nn.Module):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self.graph(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)


def to_module(path: Path | str) -> nn.Module:
    """An ONNX file as a module, exactly as written: its types, batch size and training mode.

    `forward` takes the graph's inputs in order and gives a tuple of its outputs.

    Raises:
        Unlowerable: naming the operator or construct that is not supported.
        InvalidModel: the file is corrupt, of another format, or asks for too large constants.
    """
    importer = Importer(load(Path(path)), free_batch=False, faithful=True)
    return _Tuple(importer.run().graph).eval()
