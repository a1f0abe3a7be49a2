"""torch.export files: opened safely, lowered to FX graphs, or run as they are."""

from .body import ProgramBody, original
from .lowering import lower
from .program import open_program
from .scopes import module_values
from .signature import example_inputs, fixed_batch, inputs, output_names

__all__ = [
    "ProgramBody",
    "example_inputs",
    "fixed_batch",
    "inputs",
    "lower",
    "module_values",
    "open_program",
    "original",
    "output_names",
]
