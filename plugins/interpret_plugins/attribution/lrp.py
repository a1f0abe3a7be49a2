"""Layer-wise relevance propagation."""

from typing import Literal

from pydantic import Field

from interpret_server.models.relevance import (
    AlphaBeta,
    Composite,
    Epsilon,
    Gamma,
    LinearRule,
    WeightsAlone,
    check_rules,
    z_plus,
)
from interpret_server.plugin import Batch, Capability, Classifier, Job, Kind, Params, Plugin

from .relevances import RelevanceResult, input_relevance

RuleName = Literal[
    "epsilon_plus_flat",
    "epsilon_plus",
    "epsilon_gamma_box",
    "epsilon_alpha2_beta1_flat",
    "epsilon_alpha2_beta1",
    "zero",
    "epsilon",
    "gamma",
    "alpha_beta",
    "z_plus",
    "w2",
    "flat",
]


class LRPParams(Params):
    rule: RuleName = Field(
        "epsilon_plus_flat",
        description="One rule for all layers with weights, or a composite: `epsilon` for linear "
        "layers with `z_plus`, `gamma` or `alpha_beta` (alpha 2) for convolutions, and `flat` or "
        "`z_box` for the first convolutions where the name ends so.",
    )
    first_layer: Literal["as_named", "as_others", "z_box", "w2", "flat"] = Field(
        "as_named",
        description="The rule of convolutions that no other layer with weights precedes, but for "
        "those over embedded tokens: what `rule` says, the same as for other convolutions, or one "
        "by name. `z_box` needs the input's bounds.",
    )
    epsilon: float = Field(
        1e-6, ge=0, le=1e3, description="Added to what relevance is divided by, in layer units."
    )
    gamma: float = Field(
        0.25, ge=0, le=1e6, description="How much more positive contributions count."
    )
    alpha: float = Field(
        2.0, ge=1, le=100, description="Of `alpha_beta`; beta is alpha less 1, so that 1 means 0."
    )
    products: Literal["signal", "uniform"] = Field(
        "signal",
        description="Of two values that both depend on the input: a gate (a sigmoid, a softmax, "
        "another bounded function) gets nothing, or each gets half.",
    )
    normalisation: Literal["linear", "identity"] = Field(
        "linear",
        description="Layer, group and instance norm: linear with constant deviations, or each "
        "value keeps its relevance.",
    )


class LRP(Plugin[LRPParams, RelevanceResult]):
    """The target's value handed down layer by layer, to what contributed to it.

    With `z_j = sum_i a_i w_ij + b_j`, a layer's input gets, by rule:

    - `zero`, `epsilon`: `R_i = sum_j a_i w_ij / (z_j + epsilon sign(z_j)) R_j`;
    - `gamma`: the same with `w_ij + gamma max(w_ij, 0)` in place of `w_ij`;
    - `alpha_beta`: `alpha` times the share in the positive contributions, biases among them, less
      `alpha - 1` times that in the negative ones; `z_plus`: the former alone, without biases;
    - `w2`, `flat`: in proportion to `w_ij^2`, or evenly, whatever `a` is;
    - `z_box`: in proportion to `a_i w_ij - l_i max(w_ij, 0) - h_i min(w_ij, 0)` for l <= a_i <= h.

    Batch norm is merged with the layer before it; where there is none, relevance passes unchanged,
    as through activations. Maxima are handed to the winner; averages, sums, residual connections
    and interpolation share in proportion to what was added up. Of a quotient the numerator gets
    all. The softmax follows AttnLRP. Recurrent layers are followed step by step, and their gates
    get nothing. Normalisation by the manifest, and constant scales and shifts of the input itself,
    pass relevance unchanged. Values are in the units of the target; without biases they sum to it,
    and the rule `zero` is then input times gradient in a network of rectifiers. Networks with
    operators for which this is not defined are refused.

    Source: Bach et al. 2015, "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by
    Layer-Wise Relevance Propagation"; Montavon et al. 2017, "Explaining NonLinear Classification
    Decisions with Deep Taylor Decomposition" (z_plus, w2, z_box); Montavon et al. 2019,
    "Layer-Wise Relevance Propagation: An Overview" (gamma); Arras et al. 2017, "Explaining
    Recurrent Neural Network Predictions in Sentiment Analysis" (gates); Kohlbrenner et al. 2020,
    "Towards Best Practice in Explaining Neural Network Decisions with LRP" (composites).
    """

    name = "lrp"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT, Capability.LAYERS})

    def check(self, model: Classifier, params: LRPParams) -> None:
        check_rules(model, composite_of(params))

    def run(self, model: Classifier, batch: Batch, params: LRPParams, job: Job) -> RelevanceResult:
        return input_relevance(model, batch, composite_of(params), job)


def composite_of(params: LRPParams) -> Composite:
    """The rules that parameters name."""
    dense, convolution = _layers(params)
    first: LinearRule | Literal["z_box"] | None = None
    name: str = params.first_layer
    if name == "as_named":
        name = {"box": "z_box", "flat": "flat"}.get(params.rule.rpartition("_")[2], "as_others")
    if name == "z_box":
        first = "z_box"
    elif name in ("w2", "flat"):
        first = WeightsAlone(flat=name == "flat")
    return Composite(
        convolution,
        dense,
        first,
        epsilon=0.0 if params.rule == "zero" else params.epsilon,
        products=params.products,
        normalisation=params.normalisation,
    )


def _layers(params: LRPParams) -> tuple[LinearRule, LinearRule]:
    """The rules of linear layers and of convolutions."""
    epsilon = Epsilon(params.epsilon)
    match params.rule:
        case "epsilon_plus" | "epsilon_plus_flat":
            return epsilon, z_plus()
        case "epsilon_gamma_box":
            return epsilon, Gamma(params.gamma, params.epsilon)
        case "epsilon_alpha2_beta1" | "epsilon_alpha2_beta1_flat":
            return epsilon, AlphaBeta(2.0)
    rule: LinearRule
    match params.rule:
        case "zero":
            rule = Epsilon()
        case "epsilon":
            rule = epsilon
        case "gamma":
            rule = Gamma(params.gamma, params.epsilon)
        case "alpha_beta":
            rule = AlphaBeta(params.alpha)
        case "z_plus":
            rule = z_plus()
        case "w2" | "flat":
            rule = WeightsAlone(flat=params.rule == "flat")
    return rule, rule
