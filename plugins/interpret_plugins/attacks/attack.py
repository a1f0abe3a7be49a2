"""What every attack shares: parameters, result, and how it begins and ends."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Params,
    TargetKind,
    logits_after,
    logits_before,
    metric,
    output,
)

from .losses import Goal, LossName, classes_needed
from .masking import warn_of_masking
from .norms import L0, L1, L2, NORMS, ConvexName, Linf, Norm
from .region import Region

_REACHED = "the input already has the target class, so it is returned unchanged"

_END = object()
# Another batch size or runtime may move logits by this share: a row closer to a tie goes on.
_CLEAR = 1e-5


class AimParams(Params):
    """Parameters that every attack has."""

    targeted: bool = Field(
        False,
        description="Reach the target class; otherwise the target is the true class, to be left.",
    )

    def goal(self, labels: Tensor) -> Goal:
        """What an attack on rows with these labels is to achieve."""
        return Goal(labels, self.targeted, "margin")


class GoalParams(AimParams):
    """Parameters of attacks in several norms."""

    norm: ConvexName = Field("linf", description="Norm that changes are measured in.")


class RadiusParams(GoalParams):
    """Parameters of attacks with a radius."""

    epsilon: float | None = Field(
        None,
        ge=0,
        description="Radius of the ball, in the units of the model's bounds; null: the customary "
        "CIFAR-10 radius (linf 8/255, l2 0.5, l1 12) times the width of the bounds. Leave it out "
        "where the tensors lower and upper are given.",
    )
    norm: ConvexName = Field("linf", description="Norm that epsilon is measured in.")
    confirm_small_epsilon: bool = Field(
        False,
        description="Accept an epsilon under a thousandth of the width of the bounds, which is "
        "usually a mistake of units.",
    )

    def geometry(self, model: Classifier) -> Norm:
        """The norm, for a model."""
        return NORMS[self.norm]


class AttackParams(RadiusParams):
    """Parameters that every attack in a ball or box has."""

    loss: LossName = Field(
        "cross_entropy",
        description="What is ascended, on logits: cross-entropy, the margin between the label's "
        "logit and the largest other one, or dlr, that margin over the spread of the largest "
        "logits (three classes or more, targeted four).",
    )

    def goal(self, labels: Tensor) -> Goal:
        return Goal(labels, self.targeted, self.loss)


class AscentParams(AttackParams):
    """Parameters of attacks that ascend the loss step by step."""

    confidence: float = Field(
        0.0,
        ge=0,
        description="Margin, in logits, that ends a row's search. With 0 that is its first "
        "success; with a large one the search goes on to its end for the largest margin, as wanted "
        "of examples that are to fool other models too.",
    )

    def goal(self, labels: Tensor) -> Goal:
        return replace(super().goal(labels), confidence=self.confidence)


@dataclass(frozen=True)
class AttackResult:
    adversarial: Tensor = output(
        "The inputs found, `(N, *input_shape)`, always inside the ball or box and the bounds; "
        "where the attack failed, the closest to success."
    )
    success: Tensor = output(
        "`(N,)` bool: `adversarial`, predicted again exactly as it is returned, has left the true "
        "class, or reached the target class."
    )
    logits: Tensor = logits_before()
    adversarial_logits: Tensor = logits_after()
    initially_correct: Tensor = metric(
        "1 where the input as given had not yet reached the attack's goal (untargeted: it was "
        "classified correctly); count successes over these rows only."
    )
    distance_l0: Tensor = metric("Number of values changed.")
    distance_l1: Tensor = metric("L1 norm of the change, measured in float64.")
    distance_l2: Tensor = metric("L2 norm of the change, measured in float64.")
    distance_linf: Tensor = metric("Linf norm of the change, measured in float64.")
    queries: Tensor = metric("Forward passes spent on the row; a gradient counts as two.")


@dataclass
class Attempt:
    """An attack under way.

    Args:
        model: the classifier under attack, in its fastest form.
        batch: the request.
        region: where its results may lie.
        goal: what they are to achieve.
        logits: `(N, K)` of the inputs.
        best: `(N, *input_shape)`, the best point so far; always in the region.
        margin: `(N,)`, of `best`; above zero is success.
        queries: `(N,)` int64, spent so far.
        flat: `(N,)` bool, rows that were attacked by gradients, the model's or estimated ones, and
            never found one.
        led: `(N,)` bool, rows that were attacked by the model's gradients.
        judge: the classifier as it is served.
    """

    model: Classifier
    batch: Batch
    region: Region
    goal: Goal
    logits: Tensor
    best: Tensor
    margin: Tensor
    queries: Tensor
    flat: Tensor
    led: Tensor
    judge: Classifier

    @classmethod
    def begin(cls, model: Classifier, batch: Batch, params: RadiusParams, job: Job) -> "Attempt":
        """Predict the inputs, and set the region and the goal.

        Raises:
            InvalidRequest: a box is incomplete or empty, or contradicts epsilon or norm.
        """
        return cls.start(
            model, batch, params.goal(_labels(batch)), _region(model, batch, params), job
        )

    @classmethod
    def start(
        cls, model: Classifier, batch: Batch, goal: Goal, region: Region, job: Job
    ) -> "Attempt":
        """Predict the inputs; warns about rows that have their target already."""
        with torch.no_grad():
            logits = model(batch.inputs)
            start = region.confine(batch.inputs)
            moved = (start != batch.inputs).flatten(1).any(1)
            margin = goal.margin(model(start) if moved.any() else logits)
        if goal.targeted and (reached := goal.margin(logits) > 0).any():
            job.warn(reached, _REACHED)
        return cls(
            model=model.scout,
            batch=batch,
            region=region,
            goal=goal,
            logits=logits,
            best=start,
            margin=margin,
            queries=1 + moved.long(),
            flat=torch.zeros_like(moved),
            led=torch.zeros_like(moved),
            judge=model,
        )

    @property
    def open(self) -> Tensor:
        """The rows still to be attacked, as indices: those not won by more than rounding."""
        reached = (self.goal.margin(self.logits) > 0) & (self.margin > 0)
        won = self.margin > self._enough(self.goal, self.logits)
        return torch.nonzero(~(reached | won)).squeeze(1)

    def follow(self, rows: Tensor) -> None:
        """The model's gradients lead `rows` from now on."""
        self.flat[rows] = self.led[rows] = True

    def saw(self, rows: Tensor, gradient: Tensor) -> None:
        """A gradient `(n, *input_shape)` of `rows` was found."""
        if self.flat[rows].any():
            self.flat[rows] &= ~gradient.flatten(1).any(1)

    def wants(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Of `rows`, those that would keep points with these logits."""
        return self.goal.take(rows).margin(logits) > self.margin[rows]

    def offer(self, rows: Tensor, x: Tensor, logits: Tensor) -> None:
        """Keep, of `rows`, the points of `x` that are closer to success than any before."""
        margin = self.goal.take(rows).margin(logits)
        better = torch.nonzero(margin > self.margin[rows]).squeeze(1)
        if len(better):
            self.best[rows[better]] = x[better]
            self.margin[rows[better]] = margin[better]

    def done(self, rows: Tensor) -> Tensor:
        """Of `rows`, those that need no further steps."""
        return self.margin[rows] > self.goal.confidence

    def clear(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Of `rows`, those whose logits have reached the goal by more than rounding moves them."""
        goal = self.goal.take(rows)
        return goal.margin(logits) > self._enough(goal, logits)

    @staticmethod
    def _enough(goal: Goal, logits: Tensor) -> Tensor:
        return (_CLEAR * logits.abs().amax(1)).clamp(min=goal.confidence)

    def finish(self, job: Job) -> AttackResult:
        """Round the best points into the region, predict exactly those, and measure.

        Rows that were not won are warned about where the gradients are to blame.
        """
        inputs = self.batch.inputs
        adversarial = self.region.confine(self.best)
        with torch.no_grad():
            logits = self.judge(adversarial)
        success = (self.goal.margin(logits) > 0) & self.region.holds(adversarial)
        warn_of_masking(self, success, job)
        delta = adversarial.double() - inputs.double()
        return AttackResult(
            adversarial=adversarial,
            success=success,
            logits=self.logits,
            adversarial_logits=logits,
            initially_correct=(~(self.goal.margin(self.logits) > 0)).double(),
            distance_l0=(delta != 0).flatten(1).sum(1).double(),
            distance_l1=L1().size(delta),
            distance_l2=L2().size(delta),
            distance_linf=Linf().size(delta),
            queries=(self.queries + 1).double(),
        )


def drive(job: Job, total: int, steps: Iterator[None]) -> None:
    """Take steps until there are no more; each is reported, and `total` is the most there can be.

    An attack is written as a generator of its steps, so that several can follow each other as one.
    """
    for _ in job.track(total):
        if next(steps, _END) is _END:
            break


RADII: Mapping[str, AuxTensor] = {
    "epsilon": AuxTensor(
        "Radius of each row, `(N,)`, instead of the parameter epsilon.", like_input=False
    )
}


class Attack:
    """What every attack declares."""

    kind: ClassVar[Kind] = Kind.ATTACK
    requires: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.GRADIENT, Capability.BOUNDS, Capability.SCORES}
    )
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({TargetKind.CLASS})
    tensors: ClassVar[Mapping[str, AuxTensor]] = {
        "lower": AuxTensor("Smallest values allowed, per row; with `upper`, instead of epsilon."),
        "upper": AuxTensor("Largest values allowed, per row; with `lower`, instead of epsilon."),
        **RADII,
    }

    def check(self, model: Classifier, params: Any) -> None:
        """Refuse an epsilon that is probably in other units, and a loss that takes more classes."""
        if isinstance(params, RadiusParams) and params.epsilon is not None:
            _check_units(model, params, params.epsilon, "params.epsilon")
        if isinstance(params, AttackParams):
            needed = classes_needed(params.loss, towards=params.targeted)
            if model.classes < needed:
                raise InvalidRequest.field(
                    "params.loss",
                    f"{params.loss} takes {needed} classes, and {model.name} has {model.classes}",
                )


def _check_units(model: Classifier, params: RadiusParams, epsilon: float, field: str) -> None:
    counted = isinstance(params.geometry(model), L0)
    if not counted and epsilon < model.scale / 1000 and not params.confirm_small_epsilon:
        lower, upper = model.bounds
        raise InvalidRequest.field(
            field,
            f"{epsilon:g} is under a thousandth of the bounds of {model.name}, {lower:g} to "
            f"{upper:g}; epsilon is in those units: scale it, or set confirm_small_epsilon",
        )


def _labels(batch: Batch) -> Tensor:
    return batch.targets.labels.to(batch.inputs.device)


def _region(model: Classifier, batch: Batch, params: RadiusParams) -> Region:
    lower, upper = batch.tensors.get("lower"), batch.tensors.get("upper")
    if lower is None and upper is None:
        norm = params.geometry(model)
        if "epsilon" in batch.tensors:
            return Region.ball(batch.inputs, norm, _radii(model, batch, params), model.bounds)
        epsilon = norm.usual(model.scale) if params.epsilon is None else params.epsilon
        return Region.ball(batch.inputs, norm, epsilon, model.bounds)
    if lower is None or upper is None:
        missing = "lower" if lower is None else "upper"
        raise InvalidRequest.field(f"tensors.{missing}", "a box needs both lower and upper")
    if params.epsilon is not None or "epsilon" in batch.tensors:
        raise InvalidRequest.field("params.epsilon", "give either epsilon or a box, not both")
    if params.norm != "linf":
        raise InvalidRequest.field("params.norm", "a box is attacked with norm linf only")
    return Region.box(batch.inputs, lower, upper, model.bounds)


def _radii(model: Classifier, batch: Batch, params: RadiusParams) -> Tensor:
    """The caller's radius of each row, `(N,)` float64."""
    field, radii = "tensors.epsilon", batch.tensors["epsilon"].double()
    if params.epsilon is not None:
        raise InvalidRequest.field(field, "give either the parameter epsilon or the tensor")
    if radii.numel() != len(batch):
        raise InvalidRequest.field(field, "it holds one radius for each row")
    radii = radii.flatten()
    if (radii < 0).any():
        raise InvalidRequest.field(field, "a radius is not below zero")
    if isinstance(params.geometry(model), L0) and (radii != radii.round()).any():
        raise InvalidRequest.field(field, "radii are whole numbers in the norm l0")
    if len(radii):
        _check_units(model, params, float(radii.min()), field)
    return radii
