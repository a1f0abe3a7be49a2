"""Whether what a plugin gave is well formed, and whether two of its results agree."""

import types
import typing
from typing import Any

import torch
from torch import Tensor

from ..plugin import Role

_FINE, _COARSE = 1e-6, 1e-3  # shares of a field's largest value, in float64 and in float32


def tensor_problem(value: Tensor, role: Role, rows: int, classes: int) -> str | None:
    """What is wrong with a tensor of a result, in words; None where nothing is."""
    shape = list(value.shape)
    if role is not Role.GROUP and (not shape or shape[0] != rows):
        return f"has shape {shape} for {rows} rows; the first axis is the batch"
    if role is Role.METRIC and shape != [rows]:
        return f"has shape {shape}; a metric is one number per row"
    if role in (Role.LOGITS_BEFORE, Role.LOGITS_AFTER) and shape != [rows, classes]:
        return f"has shape {shape}; logits are (N, {classes})"
    if value.requires_grad:
        return "still carries a gradient; return it detached"
    if not value.isfinite().all():
        return "holds values that are not finite"
    return None


def close(found: Tensor, expected: Tensor, whole: Tensor) -> bool:
    """Whether two tensors agree, to a share of the largest value in `whole`."""
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    tolerance = _FINE if expected.dtype is torch.float64 else _COARSE
    found, expected = found.double(), expected.double()
    largest = float(whole.double().abs().max()) if whole.numel() else 0.0
    return torch.allclose(found, expected, rtol=0, atol=tolerance * largest)


def may_lack(value: Any, hint: Any) -> bool:
    """Whether a field that is None may be, by its type."""
    return (
        value is None
        and typing.get_origin(hint) in (typing.Union, types.UnionType)
        and type(None) in typing.get_args(hint)
    )


def told(error: BaseException) -> str:
    """An exception in words."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
