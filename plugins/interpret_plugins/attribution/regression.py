"""Weighted linear regression from sums, so that it takes no memory for its samples."""

from typing import NamedTuple

import torch
from torch import Tensor

MAX_FEATURES = 1000  # of one regression


class Fit(NamedTuple):
    """A linear function.

    Args:
        coefficients: `(M,)` float64.
        intercept: its value at zero.
        score: the share of the weighted variance that it explains, at most 1; 0 where there is
            none.
    """

    coefficients: Tensor
    intercept: float
    score: float


class Moments:
    """Weighted second moments of samples `(1, z, y)`, from which least squares are solved.

    Args:
        features: M, the length of z.
        device: where they are kept.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        size = features + 2
        self._sums = torch.zeros(size, size, dtype=torch.float64, device=device)

    def add(self, z: Tensor, y: Tensor, weights: Tensor) -> None:
        """Samples `(P, M)`, their values `(P,)` and weights `(P,)`."""
        rows = torch.cat([torch.ones_like(y).unsqueeze(1), z.double(), y.unsqueeze(1)], 1)
        self._sums += rows.t() @ (rows * weights.unsqueeze(1))

    def central(self) -> Tensor:
        """`(M + 1, M + 1)`: weighted sums of products of z and y, less their means."""
        sums = self._sums
        return sums[1:, 1:] - torch.outer(sums[1:, 0], sums[0, 1:]) / sums[0, 0]

    def ridge(self, penalty: float, selected: Tensor | None = None) -> Fit:
        """Least squares with `penalty * |coefficients|^2`; the intercept is free.

        Args:
            penalty: in units of the samples' weights; 0 takes the shortest of equal solutions.
            selected: the features that may be used, `(m,)` int64; the others' coefficients are 0.
        """
        central = self.central()
        used = torch.arange(len(central) - 1, device=central.device)
        used = used if selected is None else selected
        products, values = central[used][:, used], central[used, -1]
        penalised = products + penalty * torch.eye(len(used)).to(products)
        solution, _ = solve_symmetric(penalised, values)
        variance = float(central[-1, -1])
        missed = variance - float(2 * solution @ values - solution @ products @ solution)
        coefficients = central.new_zeros(len(central) - 1)
        coefficients[used] = solution
        means = self._sums[0, 1:] / self._sums[0, 0]
        intercept = float(means[-1] - means[:-1] @ coefficients)
        score = 1 - missed / variance if variance > 0 else 0.0
        return Fit(coefficients, intercept, score)

    def constrained(self, total: Tensor) -> tuple[Tensor, bool]:
        """Least squares without an intercept whose coefficients sum to `total`.

        The solution is that nearest to equal coefficients where several are as good.

        Returns:
            `(M,)` and whether the samples determine it.
        """
        products, values = self._sums[1:-1, 1:-1], self._sums[1:-1, -1]
        features = len(values)
        equal = total / max(1, features)
        # What coefficients have beyond `equal` sums to 0: it lies in the plane of this projection.
        plane = torch.eye(features).to(products) - 1 / max(1, features)
        solution, rank = solve_symmetric(
            plane @ products @ plane, plane @ (values - products.sum(1) * equal)
        )
        return equal + plane @ solution, rank >= features - 1


def solve_symmetric(matrix: Tensor, values: Tensor) -> tuple[Tensor, int]:
    """The shortest least-squares solution of a symmetric positive system, and the matrix's rank."""
    scales, vectors = torch.linalg.eigh(matrix)  # ascending
    largest = float(scales[-1]) if len(scales) else 0.0
    large = scales > len(scales) * torch.finfo(scales.dtype).eps * largest
    vectors = vectors[:, large]
    return vectors @ ((vectors.t() @ values) / scales[large]), int(large.sum())
