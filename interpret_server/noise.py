"""Random numbers that depend on a row's seed and a step number, and on nothing else.

Drawn on the CPU in float32 and then moved, so that every device and batch size gives the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mix(seed: int, step: int) -> int:
    """A 63-bit generator seed from (seed, step), by two rounds of SplitMix64 (Steele 2014)."""
    value = seed & _MASK
    for word in (step & _MASK, 0x9E3779B97F4A7C15):
        value = (value + word * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
        value ^= value >> 31
    return value >> 1


def generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator for one row at one step."""
    return torch.Generator().manual_seed(mix(seed, step))


def normal_rows(seeds: Sequence[int], step: int, like: Tensor) -> Tensor:
    """Standard normal noise with the shape, dtype and device of `like`."""
    shape = like.shape[1:]
    rows = [torch.randn(shape, generator=generator(seed, step)) for seed in seeds]
    return (torch.stack(rows) if rows else torch.empty(like.shape)).to(like)


def uniform_rows(seeds: Sequence[int], step: int, like: Tensor) -> Tensor:
    """Uniform noise in [0, 1) with the shape, dtype and device of `like`."""
    shape = like.shape[1:]
    rows = [torch.rand(shape, generator=generator(seed, step)) for seed in seeds]
    return (torch.stack(rows) if rows else torch.empty(like.shape)).to(like)
