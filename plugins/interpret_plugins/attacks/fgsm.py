"""The fast gradient sign method, and its L2 form, the fast gradient method."""

from typing import Literal

from pydantic import Field

from interpret_server.plugin import Batch, Classifier, Job, Plugin

from .attack import Attack, AttackParams, AttackResult, Attempt


class FGSMParams(AttackParams):
    norm: Literal["linf", "l2"] = Field(
        "linf", description="`linf` steps by the gradient's sign, `l2` by its unit vector."
    )


class FGSM(Attack, Plugin[FGSMParams, AttackResult]):
    """One step of the loss's gradient, as long as the ball allows, clipped to the bounds.

    `linf`: `x + epsilon * sign(grad loss)`; `l2`: `x + epsilon * grad loss / ||grad loss||_2`. In a
    box given by `lower` and `upper` the step goes to the corner that the signs point to. A row
    that is misclassified to begin with is returned unchanged, as a success that
    `initially_correct` excludes.

    Source: Goodfellow, Shlens & Szegedy 2014, "Explaining and Harnessing Adversarial Examples",
    section 4; targeted and L2 forms: Kurakin, Goodfellow & Bengio 2016, "Adversarial Machine
    Learning at Scale", section 2, and Miyato, Dai & Goodfellow 2016, equation 5.
    """

    name = "fgsm"

    def run(self, model: Classifier, batch: Batch, params: FGSMParams, job: Job) -> AttackResult:
        for _ in job.track(1):
            attempt = Attempt.begin(model, batch, params, job)
            rows = attempt.open
            if len(rows):
                region, x = attempt.region.take(rows), attempt.best[rows]
                gradient, _ = attempt.goal.take(rows).ascend(model, x)
                size = region.upper - region.lower if params.norm == "linf" else region.reach
                attempt.best[rows] = region.project(region.move(x, gradient, size))
                attempt.queries[rows] += 2
                attempt.flat[rows] = ~gradient.flatten(1).any(1)
            result = attempt.finish(job)
        return result
