"""`interpret-server demo`: the main job on real handwritten digits, with a gallery to look at."""

from .run import main

__all__ = ["main"]
