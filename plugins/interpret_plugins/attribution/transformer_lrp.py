"""Relevance through attention: AttnLRP."""

from typing import Literal

from pydantic import Field

from interpret_server.models.relevance import Composite, Epsilon, Gamma, LinearRule, check_rules
from interpret_server.plugin import Batch, Capability, Classifier, Job, Kind, Params, Plugin

from .relevances import RelevanceResult, input_relevance


class TransformerLRPParams(Params):
    linear_rule: Literal["epsilon", "gamma"] = Field(
        "epsilon", description="Of linear layers; convolutions follow `gamma`."
    )
    epsilon: float = Field(
        1e-6, ge=0, le=1e3, description="Added to what relevance is divided by, in layer units."
    )
    gamma: float = Field(
        0.25, ge=0, le=1e6, description="How much more contributions of the output's sign count."
    )
    normalisation: Literal["identity", "linear"] = Field(
        "identity",
        description="Layer norm: each value keeps its relevance, or linear with constant "
        "deviations.",
    )


class TransformerLRP(Plugin[TransformerLRPParams, RelevanceResult]):
    """Relevance propagated through attention as well as through values (AttnLRP).

    The softmax hands down `R_i = x_i (R_i - s_i sum_j R_j)`; a product of two values that both
    depend on the input, such as `O = A V` and `Q K^T`, half to each, in proportion to what it
    contributes; normalisation leaves each value its relevance; layers with weights follow the
    epsilon or gamma rule of `lrp`, and all else is as in `lrp`. Tokens count by their embeddings.
    Values are in the units of the target. The softmax and constants that are added (position
    embeddings, biases, class tokens) take a share: the metric `conservation_delta` is what is
    missing.

    Source: Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for
    Transformers", section 3.3; `linear` normalisation: Ali et al. 2022, "XAI for Transformers:
    Better Explanations through Conservative Propagation".
    """

    name = "transformer_lrp"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT, Capability.LAYERS})

    def check(self, model: Classifier, params: TransformerLRPParams) -> None:
        check_rules(model, composite_of(params))

    def run(
        self, model: Classifier, batch: Batch, params: TransformerLRPParams, job: Job
    ) -> RelevanceResult:
        return input_relevance(model, batch, composite_of(params), job)


def composite_of(params: TransformerLRPParams) -> Composite:
    """The rules that parameters name."""
    gamma = Gamma(params.gamma, params.epsilon)
    dense: LinearRule = Epsilon(params.epsilon) if params.linear_rule == "epsilon" else gamma
    return Composite(
        gamma,
        dense,
        epsilon=params.epsilon,
        products="uniform",
        normalisation=params.normalisation,
    )
