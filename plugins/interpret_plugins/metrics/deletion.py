"""Deletion: how fast the score falls as what matters most is taken away."""

from dataclasses import dataclass

from torch import Tensor

from interpret_server.plugin import metric

from .curves import AREA, CurvePlugin, CurveResult


@dataclass(frozen=True)
class DeletionResult(CurveResult):
    area: Tensor = metric(AREA, better="low")


class Deletion(CurvePlugin):
    """Area under the score's curve as positions are deleted, most important first: lower is better.

    A position is a place with all its channels, a token or a single value; its importance is the
    sum of its attributions. Deleted ones become `fill`. The curve has equal steps from nothing
    deleted to everything; for a class it is the probability, so that the area lies in [0, 1].

    Source: Petsiuk, Das & Saenko 2018, "RISE: Randomized Input Sampling for Explanation of
    Black-box Models", the causal metric "deletion".
    """

    name = "deletion"
    result_type = DeletionResult
    inserts = False
