"""Principal components, t-SNE and trustworthiness of points, a part of the work at a time."""

import math

import torch
from torch import Tensor

_EXAGGERATION = 12.0  # of the attraction, in the first quarter of the iterations
_SEARCHES = 50  # halvings of the interval in which a bandwidth lies
_MOMENTUM = (0.5, 0.8)  # while attraction is exaggerated, and after


class PrincipalComponents:
    """Orthogonal directions of largest variance.

    A component's sign is such that its loading of largest magnitude is positive.

    Args:
        points: `(N, D)` float64.
        count: how many; where points have fewer, the rest is zero.

    Attributes:
        scores: `(N, count)`, the points along the components.
        variance: `(count,)`, of the scores, with N - 1 in the denominator.
        share: `(count,)`, of the points' whole variance.
    """

    def __init__(self, points: Tensor, count: int) -> None:
        rows, values = points.shape
        centred = points - points.mean(0)
        flat = values <= rows
        squares, vectors = torch.linalg.eigh(centred.T @ centred if flat else centred @ centred.T)
        known = min(count, rows, values)
        squares = squares.flip(0)[:known].clamp(min=0)
        vectors = vectors.flip(1)[:, :known]
        directions = vectors if flat else centred.T @ vectors
        largest = directions.abs().argmax(0)
        signs = directions.gather(0, largest[None])[0].sign()
        scores = centred @ vectors if flat else vectors * squares.sqrt()
        self.scores = points.new_zeros(rows, count)
        self.variance = points.new_zeros(count)
        self.scores[:, :known] = scores * signs
        self.variance[:known] = squares / max(1, rows - 1)
        whole = centred.square().sum() / max(1, rows - 1)
        self.share = self.variance / whole if whole > 0 else self.variance


def conditional(points: Tensor, part: range, perplexity: float) -> Tensor:
    """How likely some points choose each as a neighbour, `(len(part), N)`; rows sum to 1.

    A row is a Gaussian around its point, of such a width that the exponential of its entropy is the
    perplexity.
    """
    rows = slice(part.start, part.stop)
    index = torch.arange(part.start, part.stop, device=points.device)[:, None]
    squares = torch.cdist(points[rows], points).square_()
    squares.scatter_(1, index, torch.inf)
    squares -= squares.amin(1, keepdim=True)
    finite = squares.scatter(1, index, 0)
    typical = finite.mean(1, keepdim=True)
    precision = -torch.where(typical > 0, typical, 1).log()
    low, high = precision - 40, precision + 40
    for _ in range(_SEARCHES):
        middle = (low + high) / 2
        weights = torch.exp(-squares * middle.exp())
        total = weights.sum(1, keepdim=True)
        entropy = total.log() + middle.exp() * (weights * finite).sum(1, keepdim=True) / total
        wide = entropy > math.log(perplexity)
        low, high = torch.where(wide, middle, low), torch.where(wide, high, middle)
    return weights / total


class StochasticNeighbours:
    """t-SNE in the plane, with every pair of points.

    Gradient descent with momentum and a gain for each coordinate, on the divergence of the
    affinities from `1 / (1 + d^2)` over the sum of these.

    Args:
        likely: `(N, N)`, the conditional affinities.
        start: `(N, 2)`, any scale; taken to a standard deviation of 1e-4.
        iterations: in all.

    Attributes:
        positions: `(N, 2)`.
    """

    def __init__(self, likely: Tensor, start: Tensor, iterations: int) -> None:
        joint = likely + likely.T
        self._joint = joint.div_(joint.sum())
        spread = start[:, 0].std(correction=0)
        self.positions = start * (1e-4 / spread) if spread > 0 else start.clone()
        self._early = iterations // 4
        self._rate = max(len(joint) / _EXAGGERATION / 4, 50.0)
        self._update = torch.zeros_like(self.positions)
        self._gains = torch.ones_like(self.positions)

    def step(self, number: int) -> None:
        """One iteration, counted from 0."""
        early = number < self._early
        if number == self._early:
            self._update.zero_()
            self._gains.fill_(1)
        gradient = self.gradient(_EXAGGERATION if early else 1.0)
        against = self._update * gradient < 0
        self._gains = torch.where(against, self._gains + 0.2, self._gains * 0.8).clamp(min=0.01)
        self._update = _MOMENTUM[not early] * self._update - self._rate * self._gains * gradient
        self.positions = self.positions + self._update

    def gradient(self, exaggeration: float = 1.0) -> Tensor:
        """Of the divergence by the positions, `(N, 2)`."""
        closeness = self._closeness()
        forces = (self._joint * exaggeration).sub_(closeness / closeness.sum()).mul_(closeness)
        return 4 * (forces.sum(1, keepdim=True) * self.positions - forces @ self.positions)

    def divergence(self) -> Tensor:
        """Of the affinities from those in the plane, in nats."""
        closeness = self._closeness()
        tiny = torch.finfo(closeness.dtype).tiny
        joint = self._joint.clamp(min=tiny)
        return (joint * (joint / (closeness / closeness.sum()).clamp(min=tiny)).log()).sum()

    def _closeness(self) -> Tensor:
        closeness = torch.cdist(self.positions, self.positions).square_().add_(1).reciprocal_()
        return closeness.fill_diagonal_(0)


def trustworthiness(points: Tensor, positions: Tensor, part: range, neighbours: int) -> Tensor:
    """How far some points' neighbours in the plane are their neighbours, `(len(part),)` up to 1.

    The mean over all points is the trustworthiness; 1 where a point has no other neighbours in the
    plane than among the points.

    Args:
        points: `(N, D)`.
        positions: `(N, 2)`.
        part: which points.
        neighbours: k, below N / 2.
    """
    count, rows = len(points), slice(part.start, part.stop)
    index = torch.arange(part.start, part.stop, device=points.device)[:, None]
    near = torch.cdist(positions[rows], positions).scatter_(1, index, torch.inf)
    close = near.topk(neighbours, dim=1, largest=False).indices
    far = torch.cdist(points[rows], points).scatter_(1, index, -torch.inf)
    beyond = torch.zeros(len(index), dtype=torch.int64, device=points.device)
    for neighbour in close.unbind(1):
        rank = (far < far.gather(1, neighbour[:, None])).sum(1)  # the point itself counts as one
        beyond += (rank - neighbours).clamp(min=0)
    return 1 - beyond.double() * 2 / (neighbours * (2 * count - 3 * neighbours - 1))
