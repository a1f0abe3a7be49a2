"""Tensors on their way to a model's device and back.

A GPU copies from and to pinned memory by itself: uploads go on while the kernels that read them are
launched, and a result's tensors come down together, with one wait for all.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_ASIDE = "cuda"  # the type of device that copies by itself
_MOST_BYTES = 1 << 26  # of one tensor; torch keeps pinned memory for as long as the process lives


def upload(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. The caller may write to the original at once."""
    if not _copies_aside(device, value) or value.device.type != "cpu":
        return value.to(device)
    return _pin(value).to(device, non_blocking=True)


def download(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Results on the CPU, without their history."""
    found, devices = {}, set()
    for name, value in values.items():
        plain = value.detach()
        if _copies_aside(plain.device, plain):
            found[name] = _pinned_like(plain).copy_(plain, non_blocking=True)
            devices.add(plain.device)
        else:
            found[name] = plain.to("cpu")
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
