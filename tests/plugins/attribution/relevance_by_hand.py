"""The rules of LRP written out over explicit matrices, in float64."""

import torch
from torch import Tensor, nn

LOWER, UPPER = -1.0, 2.0
GAMMA, EPSILON = 0.3, 0.05


def matrix(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A layer as `z = W a + b` over flat rows, W `(outputs, inputs)`."""
    size = torch.Size(shape).numel()
    with torch.no_grad():
        bias = layer(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        units = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
        return (layer(units).flatten(1) - bias).T, bias


def by_formula(rule: str, w: Tensor, b: Tensor, a: Tensor, relevance: Tensor) -> Tensor:
    """One row's relevance, an input and an output at a time."""
    found = torch.zeros_like(a)
    for j in range(len(b)):
        z, shares = float(w[j] @ a + b[j]), w[j] * a
        positive, negative = shares.clamp(min=0), shares.clamp(max=0)
        match rule:
            case "zero":
                found += shares / z * relevance[j]
            case "epsilon":
                found += shares / (z + (EPSILON if z >= 0 else -EPSILON)) * relevance[j]
            case "gamma":
                same = positive if z >= 0 else negative
                boosted = shares + GAMMA * same
                favoured = b[j].clamp(min=0) if z >= 0 else b[j].clamp(max=0)
                total = boosted.sum() + b[j] + GAMMA * favoured
                total += EPSILON if total >= 0 else -EPSILON
                found += boosted / total * relevance[j]
            case "alpha1_beta0" | "alpha2_beta1" | "alpha3_beta2":
                alpha = int(rule[5])
                found += alpha * _divided(positive, b[j].clamp(min=0)) * relevance[j]
                found -= (alpha - 1) * _divided(negative, b[j].clamp(max=0)) * relevance[j]
            case "z_plus":
                found += _divided(positive) * relevance[j]
            case "w2":
                found += _divided(w[j] ** 2) * relevance[j]
            case "flat":
                found += _divided((w[j] != 0).double()) * relevance[j]
            case "z_box":
                parts = shares - LOWER * w[j].clamp(min=0) - UPPER * w[j].clamp(max=0)
                found += _divided(parts) * relevance[j]
    return found


def _divided(parts: Tensor, more: Tensor | float = 0.0) -> Tensor:
    total = parts.sum() + more
    return parts / total if total != 0 else torch.zeros_like(parts)
