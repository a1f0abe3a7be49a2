"""torch.export files: opened safely, lowered to FX graphs, or run as they are."""

from .program import ProgramBody, inputs, open_program, original, output_names

__all__ = ["ProgramBody", "inputs", "open_program", "original", "output_names"]
