"""Tensors on their way to a model's device and back.

A GPU copies from and to pinned memory by itself: uploads go on while the kernels that read them are
launched, a result's tensors come down together, with one wait for all, and during that wait the
rows that are computed next go up.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from ..plugin import Batch

_ASIDE = "cuda"  # the type of device that copies by itself
_MOST_BYTES = 1 << 26  # of one tensor; torch keeps pinned memory for as long as the process lives


def upload(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. The caller may write to the original at once."""
    if not _copies_aside(device, value) or value.device.type != "cpu":
        return value.to(device)
    return _pin(value).to(device, non_blocking=True)


class Upload:
    """The rows of a long batch on their way to a device.

    Args:
        take: gives some of the rows on the device.
        device: that they are computed on.
    """

    def __init__(self, take: Callable[[range], Batch], device: torch.device) -> None:
        self._take, self._device = take, device
        self._next: tuple[range, Batch] | None = None

    def rows(self, rows: range) -> Batch:
        """These rows, which may be on their way already."""
        ahead, self._next = self._next, None
        if ahead is None or ahead[0] != rows:
            return self._take(rows)
        _join(self._device, ahead[1])
        return ahead[1]

    def begin(self, rows: range) -> None:
        """Send rows that are probably wanted next, while the device computes others."""
        if not rows or self._device.type != _ASIDE:
            return
        try:
            with _aside(self._device):
                self._next = rows, self._take(rows)
        except Exception:  # as when it is their turn, where it is dealt with
            self._next = None


def download(
    values: Mapping[str, Tensor], meanwhile: Callable[[], None] = lambda: None
) -> dict[str, Tensor]:
    """Results on the CPU, without their history.

    Args:
        values: the results.
        meanwhile: is done while a device still computes them.
    """
    found, devices = {}, set()
    for name, value in values.items():
        plain = value.detach()
        if _copies_aside(plain.device, plain):
            found[name] = _pinned_like(plain).copy_(plain, non_blocking=True)
            devices.add(plain.device)
        else:
            found[name] = plain.to("cpu")
    meanwhile()
    for device in devices:
        _wait(device)
    return found


def _copies_aside(device: torch.device, value: Tensor) -> bool:
    return device.type == _ASIDE and 0 < value.numel() * value.element_size() <= _MOST_BYTES


def _pin(value: Tensor) -> Tensor:
    return value.pin_memory()


def _pinned_like(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True)


def _wait(device: torch.device) -> None:
    torch.cuda.current_stream(device).synchronize()


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Copies inside the block go on beside the device's computation."""
    with torch.cuda.stream(_lane(device)):
        yield


@cache
def _lane(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _join(device: torch.device, batch: Batch) -> None:
    """Let what is computed from here on wait for a batch that was sent aside."""
    current = torch.cuda.current_stream(device)
    current.wait_stream(_lane(device))
    for tensor in (
        batch.inputs,
        batch.targets.index,
        batch.targets.direction,
        *batch.tensors.values(),
    ):
        if tensor is not None and tensor.device.type == _ASIDE:
            tensor.record_stream(current)
