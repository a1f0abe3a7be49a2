"""What one group of calls must not see of another: random state, default dtype, kernels."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..models.manifest import Precision
from ..models.products import PRODUCTS


@dataclass(frozen=True)
class Ambient:
    """The process-wide state of torch that a plugin may change."""

    random: Tensor
    cuda_random: Tensor | None
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def capture(cls, device: torch.device) -> "Ambient":
        """The state as it is; the CUDA generator's for a CUDA device only."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, torch.get_default_dtype(), device)

    def restore(self) -> None:
        """Put back what differs."""
        if not torch.equal(self.random, torch.get_rng_state()):
            torch.set_rng_state(self.random)
        if self.cuda_random is not None:
            torch.cuda.set_rng_state(self.cuda_random, self.device)
        if torch.get_default_dtype() is not self.dtype:
            torch.set_default_dtype(self.dtype)


@contextmanager
def repeatable_kernels() -> Iterator[None]:
    """Inside the block the same values give the same bits, where torch has such kernels.

    Only one thread at a time may be inside.
    """
    cudnn, filled = torch.backends.cudnn, cast(Any, torch.utils.deterministic)
    mode = torch.get_deterministic_debug_mode()
    before = cudnn.deterministic, cudnn.benchmark, filled.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    cudnn.deterministic, cudnn.benchmark = True, False
    filled.fill_uninitialized_memory = False  # it takes time and changes no result
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        cudnn.deterministic, cudnn.benchmark, filled.fill_uninitialized_memory = before


class Isolation:
    """A group's own state of torch, while it holds the device and only then.

    Args:
        device: that the group computes on.
        precision: of its model, which decides whether CUDA devices may use TF32.
        repeatable: by deterministic kernels.
        seed: where torch's own random state begins, for networks that draw from it; None for
            wherever it stands.
    """

    def __init__(
        self,
        device: torch.device,
        precision: Precision = Precision.FLOAT32,
        *,
        repeatable: bool = False,
        seed: int | None = None,
    ) -> None:
        self._device, self._precision, self._repeatable = device, precision, repeatable
        self._seed = seed
        self._outside: Ambient | None = None
        self._settings = ExitStack()

    @contextmanager
    def active(self) -> Iterator[None]:
        """On leaving, the process-wide state and this thread's grad mode are as before."""
        self._outside = Ambient.capture(self._device)
        self._set()
        if self._seed is not None:
            torch.manual_seed(self._seed)
        try:
            with torch.enable_grad():
                yield
        finally:
            self._settings.close()
            self._outside.restore()
            self._outside = None

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside the block the state is that of the outside; afterwards it is the group's again."""
        own = Ambient.capture(self._device)
        if self._outside is not None:
            self._outside.restore()
        self._settings.close()
        try:
            yield
        finally:
            self._set()
            self._outside = Ambient.capture(self._device)
            own.restore()

    def _set(self) -> None:
        self._settings.enter_context(PRODUCTS.held(self._device, self._precision))
        if self._repeatable:
            self._settings.enter_context(repeatable_kernels())
