"""The boundary attack: a random walk along the boundary, by decisions alone."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import Plugin

from .attack import AttackResult
from .decisions import ByDecisions, DecisionParams, Row, Search, bisect, starting_point

_RESOLUTION = 1e-3  # of the first point on the boundary
_EVERY = 5  # steps between two checks of the sideways steps
_CONVERGED = 1e-7
_SIDEWAYS, _FORWARD = 20, 10  # answers that a length is judged by


class BoundaryParams(DecisionParams):
    norm: Literal["l2"] = Field("l2", description="Norm of the change.")
    proposals: int = Field(
        5,
        ge=1,
        le=1000,
        description="Points of a row that are asked about in one pass; the walk goes on from the "
        "nearest success among them.",
    )
    sideways: float = Field(
        0.01, gt=0, le=1, description="First steps around the input, as a share of the distance."
    )
    forward: float = Field(
        0.01, gt=0, lt=1, description="First steps towards the input, as a share of the distance."
    )
    adaptation: float = Field(
        1.5, gt=1, le=10, description="Factor by which steps grow and shrink."
    )


class Boundary(ByDecisions, Plugin[BoundaryParams, AttackResult]):
    """A random walk among successes, ever closer to the input.

    From a success at distance `r` a proposal goes `sideways r` in a random direction at right
    angles to the line to the input, back onto the sphere of radius `r`, and `forward r` towards the
    input, within the bounds. Both lengths grow where more than half of the points on the sphere are
    successes and shrink where fewer than a fifth are; `forward` alone grows where more than a
    quarter of the proposals succeed and shrinks where fewer than a tenth do. The walk begins where
    bisection puts the starting point, and ends when `forward` falls under 1e-7 or the queries are
    spent. It needs many queries: tens of thousands for large images.

    Source: Brendel, Rauber & Bethge 2018, "Decision-Based Adversarial Attacks: Reliable Attacks
    Against Black-Box Machine Learning Models", section 2.
    """

    name = "boundary"

    def search(self, row: Row, params: BoundaryParams) -> Search:
        start = yield from starting_point(row, params.tries)
        if start is None:
            return
        point = yield from bisect(row, start, _RESOLUTION)
        sideways, forward = params.sideways, params.forward
        around, ahead = _Share(_SIDEWAYS), _Share(_FORWARD)
        step = 0
        while forward >= _CONVERGED:
            radius = float(row.distance(point))
            sphere = _around(row, point, row.normal(params.proposals), sideways)
            if step % _EVERY == 0:
                around.add((yield sphere))
            tried = _nearer(row, sphere, radius * (1 - forward))
            answers = yield tried
            ahead.add(answers)
            nearer = torch.where(
                torch.tensor(answers, device=tried.device), row.distance(tried), torch.inf
            )
            if float(nearer.min()) < radius:
                point = tried[nearer.argmin()].unsqueeze(0)
            if (rate := around.rate()) is not None:
                factor = _factor(rate, 0.2, 0.5, params.adaptation)
                sideways, forward = min(sideways * factor, 1.0), min(forward * factor, 0.5)
            if (rate := ahead.rate()) is not None:
                forward = min(forward * _factor(rate, 0.1, 0.25, params.adaptation), 0.5)
            step += 1


class _Share:
    """The share of successes in the last answers, told once there are enough of them."""

    def __init__(self, needed: int) -> None:
        self._needed, self._answers = needed, list[bool]()

    def add(self, answers: list[bool]) -> None:
        self._answers += answers

    def rate(self) -> float | None:
        """The share, after which counting starts anew; None before there are enough."""
        if len(self._answers) < self._needed:
            return None
        rate = sum(self._answers) / len(self._answers)
        self._answers = []
        return rate


def _factor(rate: float, low: float, high: float, adaptation: float) -> float:
    return adaptation if rate > high else 1 / adaptation if rate < low else 1.0


def _around(row: Row, point: Tensor, noise: Tensor, share: float) -> Tensor:
    """Random points of the sphere around the input that a point lies on, within the bounds."""
    line = (point - row.x).flatten(1)
    radius = torch.linalg.vector_norm(line, dim=1, keepdim=True)
    flat = noise.flatten(1)
    along = (flat @ line.T) / radius.square()
    flat = flat - along * line
    lengths = torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(min=1e-30)
    moved = (line + flat * (share * radius / lengths)) / (1 + share**2) ** 0.5
    return row.clip(row.x + moved.reshape(noise.shape))


def _nearer(row: Row, points: Tensor, radius: float) -> Tensor:
    """Points moved towards the input, to a distance where they are not nearer already."""
    change = points - row.x
    share = (radius / row.distance(points).clamp(min=1e-300)).clamp(max=1).to(change)
    return row.clip(row.x + change * share.reshape(-1, *[1] * (change.dim() - 1)))
