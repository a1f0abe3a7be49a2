"""Layer-wise relevance propagation through canonical graphs.

Every node of the graph has a rule by which the relevance of its values goes to the values that it
was computed from: `linear_rules` for layers with weights, `rules` for other operators, `operators`
for which is which, `plan` for the network as a whole, and `walk` for running it.
"""

from .linear_rules import AlphaBeta, Epsilon, Gamma, LinearRule, WeightsAlone, ZBox, z_plus
from .plan import Composite, check_rules
from .walk import Relevance, relevance

__all__ = [
    "AlphaBeta",
    "Composite",
    "Epsilon",
    "Gamma",
    "LinearRule",
    "Relevance",
    "WeightsAlone",
    "ZBox",
    "check_rules",
    "relevance",
    "z_plus",
]
