"""For plugin authors: classifiers without files, an in-process server, the conformance suite."""

from .classifiers import classifier
from .conformance import ConformanceError, conformance
from .server import serve

__all__ = ["ConformanceError", "classifier", "conformance", "serve"]
