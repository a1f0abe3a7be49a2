"""The fast gradient sign method, and its L2 form, the fast gradient method."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Tensor

from interpret_server.plugin import Batch, Classifier, Job, Plugin

from .attack import Attack, AttackParams, AttackResult, Attempt
from .region import Region


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
        move = _to_the_corner if params.norm == "linf" else straight
        return one_step(model, batch, params, job, move)


Move = Callable[[Region, Tensor, Tensor], Tensor]


def one_step(
    model: Classifier, batch: Batch, params: AttackParams, job: Job, move: Move
) -> AttackResult:
    """An attack of one step: `move(region, x, gradient)`, projected onto the region."""
    for _ in job.track(1):
        attempt = Attempt.begin(model, batch, params, job)
        rows = attempt.open
        if len(rows):
            region, x = attempt.region.take(rows), attempt.best[rows]
            gradient, _ = attempt.goal.take(rows).ascend(model, x)
            attempt.best[rows] = region.project(move(region, x, gradient))
            attempt.queries[rows] += 2
            attempt.follow(rows)
            attempt.saw(rows, gradient)
        result = attempt.finish(job)
    return result


def straight(region: Region, x: Tensor, gradient: Tensor) -> Tensor:
    """A step of the radius along the direction that ascends most."""
    return region.move(x, gradient, region.reach)


def _to_the_corner(region: Region, x: Tensor, gradient: Tensor) -> Tensor:
    return region.move(x, gradient, region.upper - region.lower)
