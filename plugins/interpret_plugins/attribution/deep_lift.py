"""DeepLIFT."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.models.multipliers import multipliers
from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    Params,
    Plugin,
    logits_before,
    metric,
    output,
)

from .baselines import Baseline, check_baseline
from .convergence import convergence_delta
from .gradients import warn_of_zeros
from .paths import baseline_of

ZERO = (
    "every attribution is zero: the target is the same at the baseline and at this input as far as "
    "any value tells, or the two are the same"
)
_INEXACT = (
    "the attributions miss the target's difference between the input and the baseline by more than "
    "5% of it: "
)
_PICKED = "what {} picks by position differs between the two, and no multiplier tells that"
_ROUNDED = "rounding, or an operator that is far from smooth, outweighs the difference"


def inexact(unruled: Iterable[str]) -> str:
    """What rows are told whose attributions do not add up.

    Args:
        unruled: the operators that multipliers do not tell of.
    """
    names = ", ".join(sorted(set(unruled)))
    return _INEXACT + (_PICKED.format(names) if names else _ROUNDED)


class DeepLiftParams(Params):
    baseline: Baseline = Field(
        Baseline.ZERO,
        description="What the input is compared with, in the model's own units: zero, the lower or "
        "the upper bound, or the manifest's mean (else the middle of the bounds). The tensor "
        "`baseline` replaces it.",
    )


@dataclass(frozen=True)
class DeepLiftResult:
    attributions: Tensor = output(
        "Share of each input value in the target's difference from the baseline, "
        "`(N, *input_shape)`, signed."
    )
    convergence_delta: Tensor = metric(
        "Sum of the attributions, less the target's value at the input and plus that at the "
        "baseline; 0 within rounding."
    )
    logits: Tensor | None = logits_before()


class DeepLift(Plugin[DeepLiftParams, DeepLiftResult]):
    """Differences from a baseline, passed back by the rescale rule: `m (x - x')`, in target units.

    Instead of its derivative every non-linear operator passes back its slope between the baseline
    `x'` and the input: `m = (f(x) - f(x')) / (x - x')`, and the derivative where both are equal
    but for rounding. Values sum to `S(x) - S(x')` (completeness) on any network: of several
    arguments that meet in an operator (products, quotients, gates) each gets its Shapley value;
    softmax and normalisations are taken as what they are made of; where max pooling picks other
    values, the rise goes to the new one and the fall to the old one. `convergence_delta` is what
    the sum misses, and rows where that is more than 5% of the difference are warned about. Tokens
    are attributed by their embeddings. The network runs as it was read, operator by operator.

    Source: Shrikumar, Greenside & Kundaje 2017, "Learning Important Features Through Propagating
    Activation Differences", section 3 (the rescale rule). Shapley values of an operator's
    arguments are from Lundberg & Lee 2017, "A Unified Approach to Interpreting Model Predictions"
    (Deep SHAP), and the shares of max pooling from their SHAP library.
    """

    name = "deep_lift"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT, Capability.DETERMINISTIC})
    tensors: ClassVar[dict[str, AuxTensor]] = {
        "baseline": AuxTensor("What each row is compared with, in place of the parameter.")
    }

    def check(self, model: Classifier, params: DeepLiftParams) -> None:
        check_baseline(model, params.baseline)

    def run(
        self, model: Classifier, batch: Batch, params: DeepLiftParams, job: Job
    ) -> DeepLiftResult:
        inputs = batch.inputs
        baseline = baseline_of(model, batch, params.baseline)
        size = max(1, job.max_rows // 2)  # a row runs at both ends
        starts = range(0, max(len(batch), 1), size)
        parts = []
        for step in job.track(len(starts)):
            rows = slice(starts[step], starts[step] + size)
            parts.append(multipliers(model, inputs[rows], baseline[rows], batch.targets.take(rows)))
        attributions = (inputs - baseline) * torch.cat([part.inputs for part in parts])
        end, start = (
            torch.cat([part.objective for part in parts]),
            torch.cat([part.start for part in parts]),
        )
        message = inexact(name for part in parts for name in part.unruled)
        delta = convergence_delta(job, attributions, end, start, message)
        warn_of_zeros(job, attributions, ZERO)
        logits = [part.logits for part in parts if part.logits is not None]
        return DeepLiftResult(attributions, delta, torch.cat(logits) if logits else None)
