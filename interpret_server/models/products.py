"""TF32: torch's settings of float32 products on CUDA devices, which hold for the whole process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .manifest import Precision

_ROUNDING = {Precision.TF32: "tf32"}
_EXACT = "ieee"


class ProductSettings:
    """Who computes with which setting; those who want different ones wait for each other.

    The process's own settings are back when nobody computes.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rounding = _EXACT
        self._holders = 0
        self._outside: list[str] = []

    @contextmanager
    def held(self, device: torch.device, precision: Precision) -> Iterator[None]:
        """Inside the block, float32 products on CUDA devices have a precision.

        Blocks of one precision may overlap; another one waits until they have ended. The block's
        thread may hold no other one. Nothing happens for other devices.

        Args:
            device: that the block computes on.
            precision: `tf32`; any other one means that nothing but TF32 is left out.
        """
        if device.type != "cuda":
            yield
            return
        self._enter(_ROUNDING.get(precision, _EXACT))
        try:
            yield
        finally:
            self._leave()

    def _enter(self, rounding: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._holders or self._rounding == rounding)
            if not self._holders:
                self._outside = [operation.fp32_precision for operation in _operations()]
                self._rounding = rounding
            self._holders += 1
            for operation in _operations():  # a plugin may have changed them
                operation.fp32_precision = rounding

    def _leave(self) -> None:
        with self._changed:
            self._holders -= 1
            if not self._holders:
                for operation, rounding in zip(_operations(), self._outside, strict=True):
                    operation.fp32_precision = rounding
                self._changed.notify_all()


def _operations() -> tuple[Any, ...]:
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn


PRODUCTS = ProductSettings()  # of this process, as torch's settings are
