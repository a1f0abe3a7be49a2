"""Natural evolution strategies: ascent along a gradient that is estimated from scores."""

from pydantic import Field

from interpret_server.plugin import Batch, Classifier, Job, Plugin

from .attack import Attack, AttackResult, Attempt, drive
from .probes import Momentum, Probing, RandomDirections, ascend_by_probes, normal
from .scores import BudgetParams, ByScores


class NESParams(BudgetParams):
    samples: int = Field(
        50, ge=2, le=10_000, multiple_of=2, description="Probes of a step, in opposite pairs."
    )
    sigma: float = Field(
        0.001,
        gt=0,
        le=1,
        description="Standard deviation of the probes, as a share of the width of the bounds.",
    )
    step_size: float | None = Field(
        None,
        gt=0,
        description="Length of a step in the norm, in the units of the bounds; null: a tenth of "
        "epsilon, or in a box of half its width, value by value.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Weight of the gradients before.")


class NES(ByScores, Attack, Plugin[NESParams, AttackResult]):
    """Projected steps along a gradient that is estimated from scores at random points.

    `g = sum_j (f(x + sigma u_j) - f(x - sigma u_j)) u_j` over normal directions `u_j` in opposite
    pairs, up to a factor; a moving average of it is ascended as in `pgd`. One more query judges
    the point of each step. Probes of several rows go through the model together; a row stops at its
    first success and leaves the batch.

    Source: Ilyas, Engstrom, Athalye & Lin 2018, "Black-box Adversarial Attacks with Limited Queries
    and Information", section 2; the step size is constant here.
    """

    name = "nes"

    def run(self, model: Classifier, batch: Batch, params: NESParams, job: Job) -> AttackResult:
        attempt = Attempt.begin(model, batch, params, job)
        probing = Probing.of(job, params.budget, params.samples // 2, params.sigma * model.scale)
        directions = RandomDirections(batch.seeds, batch.inputs.shape[1:], normal)
        step = Momentum(attempt, params.step_size, 0.1, params.momentum)
        steps = ascend_by_probes(attempt, attempt.goal, directions, probing, step)
        drive(job, probing.passes(len(batch)), steps)
        return attempt.finish(job)
