"""DeepLIFT's multipliers of whole networks, whatever operators they are made of.

A multiplier is a finite difference in place of a derivative: for an operator `f` and multipliers
`g` of its results, those of its arguments, `m`, satisfy
`sum(m * (x - x')) = sum(g * (f(x) - f(x')))`. Passed back from the target to the input, they
attribute `S(x) - S(x')` without remainder. The network runs once at the input and once at the
baseline, operator by operator; both passes take the same steps or there are no multipliers.
"""

from .passes import Multipliers, multipliers

__all__ = ["Multipliers", "multipliers"]
