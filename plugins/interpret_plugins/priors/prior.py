"""What the built-in priors share: their weight, their result, and sums of them.

A prior is a plugin of kind `prior` whose result has `score`, the gradient of its log density by the
inputs, and `log_prob`, the log density, or None where it has only a score. One whose density cannot
be normalised by itself says so by a class attribute `proper = False`, one that has a score alone by
`has_log_prob = False`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    Batch,
    Classifier,
    InvalidRequest,
    Job,
    Method,
    Params,
    Plugin,
    Targets,
    metric,
    output,
)


class PriorParams(Params):
    """Parameters that every prior has."""

    weight: float = Field(
        1.0, gt=0, le=1e6, description="Multiplies the log density, and so its score."
    )


@dataclass(frozen=True)
class PriorResult:
    """A log density at the inputs, times its weight."""

    score: Tensor = output("Gradient of the log density by the inputs, per unit of the inputs.")
    log_prob: Tensor | None = metric(
        "Log density, up to a constant where it has no known one; left out where the prior has a "
        "score alone."
    )


def check_sum(
    priors: Sequence[Plugin[Any, Any]], *, exact: bool = False, field: str = "params.priors"
) -> None:
    """Refuse priors whose sum is no density, or whose density is not known.

    Args:
        exact: the log density is needed.
        field: where they stand in the request.

    Raises:
        InvalidRequest: none of the priors is a proper density; or, with `exact`, naming the first
            that has a score alone.
    """
    if not any(getattr(prior, "proper", True) for prior in priors):
        raise InvalidRequest.field(
            field,
            f"{priors[0].name} leaves constant images free, so alone it is no density; add a prior "
            "such as gaussian",
        )
    for place, prior in enumerate(priors):
        if exact and not getattr(prior, "has_log_prob", True):
            raise _no_density(prior, f"{field}.{place}")


def _no_density(prior: Plugin[Any, Any], field: str) -> InvalidRequest:
    return InvalidRequest.field(
        field,
        f"{prior.name} has a score, but no log density, which Metropolis steps need; leave "
        "metropolis out or take a prior with log_prob",
    )


class PriorSum:
    """The sum of the log densities of the priors that a request names.

    Args:
        methods: plugins of kind `prior`, at least one.
        job: that runs them.
        exact: the log density is needed.
        field: where they stand in the request, for errors.

    Raises:
        InvalidRequest: as `check_sum`.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        job: Job,
        *,
        exact: bool = False,
        field: str = "params.priors",
    ) -> None:
        self._priors = [job.plugin(method) for method in methods]
        self._exact, self._field = exact, field
        check_sum([prior.plugin for prior in self._priors], exact=exact, field=field)

    def at(self, model: Classifier, x: Tensor, seeds: tuple[int, ...]) -> PriorResult:
        """The sum at inputs `(N, *input_shape)`; its `log_prob` is None where one prior has none.

        To be called within a step of `Job.track`.

        Raises:
            InvalidRequest: a log density is needed, and a prior that promised one has none.
        """
        batch = Batch(x, Targets.none(len(x)), seeds)
        score = torch.zeros_like(x)
        log_prob: Tensor | None = x.new_zeros(len(x))
        for place, prior in enumerate(self._priors):
            found = prior.run(model, batch)
            score = score + found.score
            if found.log_prob is None and self._exact:
                raise _no_density(prior.plugin, f"{self._field}.{place}")
            if log_prob is not None:
                log_prob = None if found.log_prob is None else log_prob + found.log_prob
        return PriorResult(score, log_prob)
