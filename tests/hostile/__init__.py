"""Model files that mean harm, and what must become of them.

INTERPRET_HOSTILE=all in the environment tries every file; otherwise a sample, which takes a minute.
The networks, archives and graphs that the tests of single formats use are used here too.
"""

import sys
from pathlib import Path

_MODELS = str(Path(__file__).parents[1] / "models")
if _MODELS not in sys.path:
    sys.path.append(_MODELS)
