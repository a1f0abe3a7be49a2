"""Model repositories: `DIR/<name>/<version>/model.{pt,onnx,pt2}`. Imports no torch."""

from .entries import Entry, resolve
from .plans import Plan, Problem, address, scan

__all__ = ["Entry", "Plan", "Problem", "address", "resolve", "scan"]
