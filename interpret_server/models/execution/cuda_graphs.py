"""CUDA graphs as a recorder of passes."""

from collections.abc import Callable
from typing import Self

import torch

from .replay import Recorder, Tensors

_SPARE = 0.25  # of a device's memory that recordings leave free
_WARM = 3  # passes before the recorded one, in which libraries choose their kernels


def recorder_of(device: torch.device) -> Recorder | None:
    """What records passes on a device, if anything does."""
    return CudaGraphs(device) if device.type == "cuda" else None


class CudaGraphs:
    """Records what is launched into CUDA graphs, in memory of its own.

    All its work is launched into one stream: autograd takes a pass back to the stream of the pass
    forward, and what is launched elsewhere is not recorded.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def apart(self) -> Self:
        """See `Recorder`."""
        return type(self)(self._device)

    def record(self, work: Callable[[], Tensors]) -> tuple[Tensors, Callable[[], None]]:
        """See `Recorder`."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM):
                work()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        with torch.cuda.stream(current), recording:  # a failed recording may leave its own current
            results = work()
        return results, graph.replay

    def has_room(self) -> bool:
        """See `Recorder`."""
        free, total = torch.cuda.mem_get_info(self._device)
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(
            self._device
        )
        return free + cached > _SPARE * total
