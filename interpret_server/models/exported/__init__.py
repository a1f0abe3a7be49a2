"""torch.export files: opened safely, lowered to FX graphs, or run as they are."""

from .lowering import example_inputs, lower
from .program import ProgramBody, inputs, open_program, original, output_names

__all__ = [
    "ProgramBody",
    "example_inputs",
    "inputs",
    "lower",
    "open_program",
    "original",
    "output_names",
]
