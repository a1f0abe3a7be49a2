"""For plugin authors: classifiers without files, an in-process server, the conformance suite."""

from .classifiers import classifier

__all__ = ["classifier"]
