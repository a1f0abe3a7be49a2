"""The momentum iterative fast gradient sign method."""

from pydantic import Field

from interpret_server.plugin import Batch, Classifier, Job, Plugin

from .attack import AscentParams, Attack, AttackResult, Attempt, drive
from .projected import Ascent, projected_ascent


class MIFGSMParams(AscentParams):
    steps: int = Field(10, ge=1, le=10_000, description="Gradient steps.")
    step_size: float | None = Field(
        None,
        gt=0,
        description="Length of a step in the norm, in the units of the bounds; null: epsilon / "
        "steps, or in a box its width / steps, value by value.",
    )
    decay: float = Field(
        1.0, ge=0, le=10, description="Share of the gathered gradients that each step keeps."
    )


class MIFGSM(Attack, Plugin[MIFGSMParams, AttackResult]):
    """BIM along gathered gradients, whose results transfer better to other classifiers.

    `g_{t+1} = decay * g_t + grad loss(x_t) / mean|grad loss(x_t)|`, `x_{t+1} = project(x_t +
    step_size * direction(g_{t+1}))`, from the input. A row stops at its first success and leaves
    the batch. A row that is misclassified to begin with is returned unchanged, as a success that
    `initially_correct` excludes.

    Source: Dong, Liao, Pang, Su, Zhu, Hu & Li 2017, "Boosting Adversarial Attacks with Momentum",
    algorithm 1, with the mean for the sum of the gradient's sizes, which changes no step.
    """

    name = "mi_fgsm"

    def run(self, model: Classifier, batch: Batch, params: MIFGSMParams, job: Job) -> AttackResult:
        attempt = Attempt.begin(model, batch, params, job)
        travel = 2.0 if "lower" in batch.tensors else 1.0  # from one corner of a box to another
        ascent = Ascent(params.steps, params.step_size, travel, decay=params.decay)
        drive(job, ascent.passes, projected_ascent(attempt, ascent, job))
        return attempt.finish(job)
