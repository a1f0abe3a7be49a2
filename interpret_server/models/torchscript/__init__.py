"""TorchScript archives: opened, lowered to FX graphs, or run as they are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..lowered import Lowered, Unlowerable
from .archive import ArchiveBody, open_archive, training_modules
from .decisions import decided_otherwise
from .walker import Walker

__all__ = [
    "ArchiveBody",
    "Unlowerable",
    "decided_otherwise",
    "lower",
    "open_archive",
    "training_modules",
]

_SHOWN = 5  # of the modules in training mode


def lower(
    archive: torch.jit.ScriptModule, examples: Sequence[Tensor], *, straight_through: bool = False
) -> Lowered:
    """Turn an archive into a graph that gives the same outputs for any batch size.

    Layers are named after modules: `layer1.0.conv1`; a module called again gives
    `layer1.0.relu:1`, an operator of no module of its own `layer1.0.add`, and a container the
    value of its last part. Decisions of the code are taken as the examples take them, where they
    depend on shapes, constants and the training flag alone. Dropout and batch normalisation take
    their inference form, in-place operations become ordinary ones, and tensors are made on the
    device of the first input. Weights are shared with the archive.

    Args:
        archive: in evaluation mode, on the CPU.
        examples: one tensor per input that has no default, `(N, *shape)`, in the archive's dtype;
            two rows or more, and sizes above 1 where sizes are free.
        straight_through: statically quantised arithmetic becomes rounding in floating point, equal
            to the archive's up to one step, whose gradient is straight-through. Without, and for
            dynamically quantised layers, such an archive has no graph.

    Raises:
        Unlowerable: the code depends on tensor data, keeps state, or uses what has no graph form;
            the message names the operator or construct.
    """
    lowered = Walker(archive, examples, straight_through).walk()
    training = training_modules(archive)
    if training:
        lowered.notes.append(
            f"The file was in training mode ({_listed(training)}); it is served in its inference "
            "form."
        )
    return lowered


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
