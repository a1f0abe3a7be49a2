"""Projected gradient descent on the classifier's mistakes."""

from typing import Self

from pydantic import Field, model_validator

from interpret_server.plugin import Batch, Classifier, InvalidRequest, Job, Plugin

from ..synthesis.spatial import Axes
from .attack import AscentParams, Attack, AttackResult, Attempt, drive
from .norms import L0, Norm, NormName
from .projected import Ascent, projected_ascent


class PGDParams(AscentParams):
    norm: NormName = Field(  # type: ignore[assignment]  # wider than what its base takes
        "linf", description="Norm that epsilon is measured in; `l0` counts the values changed."
    )
    epsilon: float | None = Field(
        None,
        ge=0,
        description="Radius of the ball, in the units of the model's bounds, in l0 a number of "
        "values or pixels; null: the customary CIFAR-10 radius (linf 8/255, l2 0.5, l1 12) times "
        "the width of the bounds, l0 24. Leave it out where the tensors lower and upper are given.",
    )
    pixels: bool = Field(
        False, description="Only in l0: count pixels, with all channels of a place, not values."
    )
    steps: int = Field(40, ge=1, le=10_000, description="Gradient steps of each restart.")
    step_size: float | None = Field(
        None,
        gt=0,
        description="Length of a step in the norm, in l0 the mean of what it adds to a value, in "
        "the units of the bounds; null: 2.5 epsilon / steps, in l0 20 times the width of the "
        "bounds / steps, or in a box 2.5 times half its width / steps, value by value.",
    )
    restarts: int = Field(
        1, ge=1, le=1000, description="How often a row that has not succeeded starts anew."
    )
    random_start: bool = Field(
        True, description="Start from a random point of the ball or box, not from the input."
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts above 1 need random_start, or all of them are the same")
        if self.pixels and self.norm != "l0":
            raise ValueError("pixels are counted in the norm l0 only")
        if self.norm == "l0" and self.epsilon is not None and not self.epsilon.is_integer():
            raise ValueError("epsilon is a whole number in the norm l0: how many values may change")
        return self

    def geometry(self, model: Classifier) -> Norm:
        return L0(Axes.of(model).channels) if self.pixels else super().geometry(model)


class PGD(Attack, Plugin[PGDParams, AttackResult]):
    """Steps of steepest ascent on the loss, each projected back onto the ball and the bounds.

    `x_{t+1} = project(x_t + step_size * direction(grad loss(x_t)))`, where the direction of unit
    norm is the sign (`linf`), the unit vector (`l2`), or the signs of the hundredth of the values
    with the largest gradients (`l1`). In `l0` the step follows the gradient itself, and the
    projection keeps the `epsilon` values or pixels that bring the result nearest. Projections are
    exact on the ball cut with the bounds. A row stops at its first success and leaves the batch,
    so that later steps cost less; the point returned is that success, else the point with the
    largest margin of all steps and restarts. A row that is misclassified to begin with is returned
    unchanged, as a success that `initially_correct` excludes. Random starts come from the row's
    seed and the restart's number.

    Source: Madry, Makelov, Schmidt, Tsipras & Vladu 2017, "Towards Deep Learning Models Resistant
    to Adversarial Attacks", section 2.1; the default step size is that of its CIFAR-10
    experiments; L1: Tramèr & Boneh 2019 and Croce & Hein 2021; L0: Croce & Hein 2019, "Sparse and
    Imperceivable Adversarial Attacks", section 3.
    """

    name = "pgd"

    def check(self, model: Classifier, params: PGDParams) -> None:
        super().check(model, params)
        if params.pixels and len(model.input_shape) < 2:
            raise InvalidRequest.field(
                "params.pixels", f"{model.name} takes flat vectors, whose values are all there is"
            )

    def run(self, model: Classifier, batch: Batch, params: PGDParams, job: Job) -> AttackResult:
        attempt = Attempt.begin(model, batch, params, job)
        travel = 20.0 if params.norm == "l0" else 2.5
        ascent = Ascent(
            params.steps, params.step_size, travel, params.restarts, params.random_start
        )
        drive(job, ascent.passes, projected_ascent(attempt, ascent, job))
        return attempt.finish(job)
