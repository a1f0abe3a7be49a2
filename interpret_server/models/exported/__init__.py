"""torch.export files: opened safely, lowered to FX graphs, or run as they are."""

from .lowering import example_inputs, fixed_batch, lower
from .program import ProgramBody, inputs, open_program, original, output_names

__all__ = [
    "ProgramBody",
    "example_inputs",
    "fixed_batch",
    "inputs",
    "lower",
    "open_program",
    "original",
    "output_names",
]
