"""Transfer: inputs made against one model, judged by another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

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
    Method,
    ModelRole,
    Params,
    Plugin,
    metric,
)

from .attack import Attack, AttackResult, Attempt
from .crafting import craft
from .decisions import AnyClassifier, ByDecisions
from .losses import Goal
from .region import Region

_WRONG = "the surrogate gives this input another answer as it is, so nothing was made against it"


class TransferParams(Params):
    attack: Method = Field(
        Method(plugin="mi_fgsm", params={"confidence": 1000.0}),
        description="The attack on the surrogate: its name, or its name and parameters. Those that "
        "take `confidence` transfer better with a large one.",
    )


@dataclass(frozen=True)
class TransferResult(AttackResult):
    surrogate_success: Tensor = metric(
        "1 where the surrogate, asked about exactly `adversarial`, gives the answer that the "
        "attack was after."
    )


class Transfer(AnyClassifier, Plugin[TransferParams, TransferResult]):
    """An attack on the model `surrogate`; its result is judged by the model of the request.

    `adversarial` is what the attack makes of the surrogate, and `success` is what the request's
    model says about it, which is asked once about each input and once about each result, and needs
    no gradient. Whether an answer is to be left or reached is told by the attack's own `targeted`.
    The share of `success` among the rows with `initially_correct` and `surrogate_success` is the
    rate of transfer. Rows that have reached the goal already are returned unchanged. Tensors reach
    the attack, which must take them.

    Source: Papernot, McDaniel & Goodfellow 2016, "Transferability in Machine Learning: from
    Phenomena to Black-Box Attacks using Adversarial Samples"; Liu, Chen, Liu & Song 2016, "Delving
    into Transferable Adversarial Examples and Black-box Attacks".
    """

    name = "transfer"
    tensors: ClassVar[Mapping[str, AuxTensor]] = {**Attack.tensors, **ByDecisions.tensors}
    models: ClassVar[Mapping[str, ModelRole]] = {
        "surrogate": ModelRole(
            "The model that the attack is made on.",
            requires=frozenset({Capability.BOUNDS}),
            required=True,
        )
    }
    uses: ClassVar[Mapping[str, Kind]] = {"attack": Kind.ATTACK}
    runs_on: ClassVar[Mapping[str, str]] = {"attack": "surrogate"}

    def run(
        self, model: Classifier, batch: Batch, params: TransferParams, job: Job
    ) -> TransferResult:
        surrogate = job.model("surrogate")
        if surrogate.classes != model.classes:
            raise InvalidRequest.field(
                "models.surrogate",
                f"{surrogate.name} has {surrogate.classes} classes, and {model.name} "
                f"{model.classes}",
            )
        attack = job.plugin(params.attack)
        targeted = bool(getattr(attack.params, "targeted", False))
        goal = Goal(batch.targets.labels.to(batch.inputs.device), targeted, "margin")
        for _ in job.track(1):
            attempt = Attempt.start(model, batch, goal, _region(model, batch), job)
            rows = attempt.open
            if len(rows):
                attempt.best[rows] = craft(attack, surrogate, batch, rows).adversarial
            found = attempt.finish(job)
            with torch.no_grad():
                before, after = surrogate(batch.inputs), surrogate(found.adversarial)
        open_rows = torch.zeros_like(found.success).index_fill(0, rows, True)
        if (lost := open_rows & (goal.margin(before) > 0)).any():
            job.warn(lost, _WRONG)
        won = (goal.margin(after) > 0).double()
        return TransferResult(**vars(found), surrogate_success=won)


def _region(model: Classifier, batch: Batch) -> Region:
    """The caller's box, or all that the bounds allow."""
    lower, upper = batch.tensors.get("lower"), batch.tensors.get("upper")
    if lower is None or upper is None:
        return Region.everywhere(batch.inputs, "linf", model.bounds)
    return Region.box(batch.inputs, lower, upper, model.bounds)
