"""The forms that a network runs in: as it was read, or faster where nobody looks inside.

The canonical graph keeps every value readable and every layer a module that can be hooked. A plan
is a copy of it that shares its weights and gives the same values and gradients: bit by bit under
`Execution.EXACT`, else as near to exact arithmetic as the canonical graph is.
"""

from .cuda_graphs import recorder_of
from .nearby import Nearby, Window
from .plans import Execution, Plans
from .pooling import max_pool2d
from .replay import Work

__all__ = ["Execution", "Nearby", "Plans", "Window", "Work", "max_pool2d", "recorder_of"]
