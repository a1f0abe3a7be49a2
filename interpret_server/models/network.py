"""A classifier's network as one module, and the precision in which it computes."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from .manifest import Precision

T = TypeVar("T", Tensor, tuple[Tensor, ...])


class Normalise(nn.Module):
    """`(x - mean) / std`, in the units of the model's bounds."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class ClassifierModule(nn.Module):
    """Preprocessing, the file's network up to its logits, and the class axis, as one module.

    Attributes:
        precision: of the body's matrix products and convolutions. Inputs, what the body gives and
            its gradients keep the type of the inputs.
    """

    def __init__(self, normalise: nn.Module, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.normalise, self.body, self.head = normalise, body, head
        self.precision = Precision.FLOAT32

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.compute(self.body, x))
        return logits

    def compute(self, form: Callable[[Tensor], T], x: Tensor) -> T:
        """What a form of the body gives for inputs `(N, *input_shape)`, in `precision`.

        A backward pass needs no more: its operations take the types of those they belong to.
        """
        rows: Tensor = self.normalise(x)
        if self.precision is not Precision.BFLOAT16:
            return form(rows)
        with torch.autocast(rows.device.type, torch.bfloat16, cache_enabled=False):
            values = form(rows)
        if isinstance(values, Tensor):
            return _widened(values, rows.dtype)
        return tuple(_widened(value, rows.dtype) for value in values)


def _widened(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.dtype is torch.bfloat16 else value
