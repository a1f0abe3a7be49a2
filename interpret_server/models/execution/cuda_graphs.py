"""CUDA graphs as a recorder of passes."""

from collections.abc import Callable
from typing import Any

import torch

from .replay import Recorder, Tensors

_SPARE = 0.25  # of a device's memory that recordings leave free
_WARM = 3  # passes before the recorded one, in which libraries choose their kernels


def recorder_of(device: torch.device) -> Recorder | None:
    """What records passes on a device, if anything does."""
    return CudaGraphs(device) if device.type == "cuda" else None


class CudaGraphs:
    """Records what is launched into CUDA graphs; those of one network share their memory.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def record(self, work: Callable[[], Tensors]) -> tuple[Tensors, Callable[[], None]]:
        """See `Recorder`."""
        current = torch.cuda.current_stream(self._device)
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(_WARM):
                work()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(current),  # which a recording that fails may leave otherwise
            torch.cuda.graph(
                graph, pool=self._pool, stream=aside, capture_error_mode="thread_local"
            ),
        ):
            results = work()
        self._pool = self._pool or graph.pool()
        return results, graph.replay

    def has_room(self) -> bool:
        """See `Recorder`."""
        free, total = torch.cuda.mem_get_info(self._device)
        return free > _SPARE * total
