"""The basic iterative method."""

from pydantic import Field

from interpret_server.plugin import Batch, Classifier, Job, Plugin

from .attack import AscentParams, Attack, AttackResult, Attempt, drive
from .projected import Ascent, projected_ascent


class BIMParams(AscentParams):
    steps: int = Field(10, ge=1, le=10_000, description="Gradient steps.")
    step_size: float | None = Field(
        None,
        gt=0,
        description="Length of a step in the norm, in the units of the bounds; null: 2 epsilon / "
        "steps, or in a box its width / steps, value by value.",
    )


class BIM(Attack, Plugin[BIMParams, AttackResult]):
    """FGSM in many small steps from the input, each clipped to the ball and the bounds.

    `x_0 = x`, `x_{t+1} = project(x_t + step_size * direction(grad loss(x_t)))`: PGD without a
    random start, so that it takes no seed. A row stops at its first success and leaves the batch.
    A row that is misclassified to begin with is returned unchanged, as a success that
    `initially_correct` excludes.

    Source: Kurakin, Goodfellow & Bengio 2016, "Adversarial examples in the physical world",
    section 2.2; other norms as in `pgd`.
    """

    name = "bim"

    def run(self, model: Classifier, batch: Batch, params: BIMParams, job: Job) -> AttackResult:
        attempt = Attempt.begin(model, batch, params, job)
        ascent = Ascent(params.steps, params.step_size, 2.0)
        drive(job, ascent.passes, projected_ascent(attempt, ascent, job))
        return attempt.finish(job)
