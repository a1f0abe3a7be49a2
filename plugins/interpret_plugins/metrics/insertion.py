"""Insertion: how fast the score rises as what matters most is put back."""

from dataclasses import dataclass

from torch import Tensor

from interpret_server.plugin import metric

from .curves import AREA, CurvePlugin, CurveResult


@dataclass(frozen=True)
class InsertionResult(CurveResult):
    area: Tensor = metric(AREA, better="high")


class Insertion(CurvePlugin):
    """Area under the score's curve as positions come back, most important first: higher is better.

    A position is a place with all its channels, a token or a single value; its importance is the
    sum of its attributions. The curve starts from an input that is `fill` everywhere and ends with
    the input itself; for a class it is the probability, so that the area lies in [0, 1]. The paper
    starts from a blurred image: `fill` `blur`.

    Source: Petsiuk, Das & Saenko 2018, "RISE: Randomized Input Sampling for Explanation of
    Black-box Models", the causal metric "insertion".
    """

    name = "insertion"
    result_type = InsertionResult
    inserts = True
