"""Resizing, one axis after the other: each output element is a weighted sum of few input ones."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...lowered import Unlowerable
from ..call import Call
from ..registry import operator
from ..values import Maybe, Output, Value


class Interpolation(NamedTuple):
    """How positions and weights are computed; the fields are the attributes of Resize."""

    mode: str
    coordinates: str
    rounding: str
    cubic: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


def positions(
    kind: str,
    length: int,
    size: int,
    scale: float,
    region: tuple[float, float],
    device: torch.device,
) -> Tensor:
    """The input coordinate of each of `size` output elements."""
    out = torch.arange(size, dtype=torch.float32, device=device)
    scaled = scale * length
    match kind:
        case "half_pixel":
            return (out + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (out + 0.5) / scale - 0.5 if scaled > 1 else torch.zeros_like(out)
        case "half_pixel_symmetric":
            offset = length / 2 * (1 - size / scaled)
            return offset + (out + 0.5) / scale - 0.5
        case "align_corners":
            return out * (length - 1) / (scaled - 1) if scaled != 1 else torch.zeros_like(out)
        case "asymmetric":
            return out / scale
        case "tf_half_pixel_for_nn":
            return (out + 0.5) / scale
        case "tf_crop_and_resize":
            first, last = region[0] * (length - 1), region[1] * (length - 1)
            if scaled == 1:
                return torch.full_like(out, (first + last) / 2)
            return first + out * (last - first) / (scaled - 1)
        case _:
            raise Unlowerable(f"Resize with coordinate_transformation_mode {kind}")


_ROUNDING: Mapping[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _kernel(how: Interpolation, distance: Tensor) -> Tensor:
    if how.mode == "linear":
        return (1 - distance).clamp(min=0)
    a = how.cubic
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))


def resize_axis(
    x: Tensor, axis: int, size: int, scale: float, region: tuple[float, float], how: Interpolation
) -> Tensor:
    """`x` with one axis resized."""
    length = x.shape[axis]
    at = positions(how.coordinates, length, size, scale, region, x.device)
    if how.mode == "nearest":
        index = _ROUNDING[how.rounding](at).clamp(0, length - 1).to(torch.int64)
        result = x.index_select(axis, index)
    else:
        shrink = min(scale, 1.0) if how.antialias else 1.0
        reach = math.ceil((1 if how.mode == "linear" else 2) / shrink)
        taps = torch.floor(at)[:, None] + torch.arange(-reach + 1, reach + 1, device=x.device)
        weights = _kernel(how, ((taps - at[:, None]) * shrink).abs())
        if how.exclude_outside:
            weights = weights * ((taps >= 0) & (taps < length))
        if how.exclude_outside or how.antialias:
            weights = weights / weights.sum(1, keepdim=True)
        picks = taps.clamp(0, length - 1).to(torch.int64)
        moved = x.movedim(axis, -1)
        terms = (
            moved.index_select(-1, picks[:, tap]) * weights[:, tap].to(x.dtype)
            for tap in range(picks.shape[1])
        )
        result = torch.stack(list(terms)).sum(0).movedim(-1, axis)
    if how.coordinates == "tf_crop_and_resize":
        outside = ((at < 0) | (at > length - 1)).reshape(
            [-1 if i == axis % x.dim() else 1 for i in range(x.dim())]
        )
        result = result.masked_fill(outside, how.extrapolation)
    return result


def resize(
    x: Tensor,
    region: Sequence[float] | None,
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
    axes: Sequence[int] | None,
    policy: str,
    how: Interpolation,
) -> Tensor:
    """`x` resized to sizes or by scales along some axes."""
    along = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
    if sizes:
        targets = [int(length) for length in sizes]
        factors = [t / x.shape[axis] for t, axis in zip(targets, along, strict=True)]
        if policy != "stretch":
            common = min(factors) if policy == "not_larger" else max(factors)
            factors = [common] * len(along)
            targets = [math.floor(common * x.shape[axis] + 0.5) for axis in along]
    else:
        factors = [float(factor) for factor in scales or ()]
        targets = [
            math.floor(factor * x.shape[axis]) for factor, axis in zip(factors, along, strict=True)
        ]
    crop = how.coordinates == "tf_crop_and_resize" and region
    result = x if x.is_floating_point() else x.float()
    for place, axis in enumerate(along):
        if not crop and targets[place] == x.shape[axis] and factors[place] == 1:
            continue
        bounds = (region[place], region[place + len(along)]) if crop and region else (0.0, 1.0)
        result = resize_axis(result, axis, targets[place], factors[place], bounds, how)
    return result.to(x.dtype)


@operator("Resize", since=11)
def resize_import(
    call: Call, x: Value, region: Maybe = None, scales: Maybe = None, sizes: Maybe = None
) -> Output:
    how = Interpolation(
        call.text("mode", "nearest"),
        call.text("coordinate_transformation_mode", "half_pixel"),
        call.text("nearest_mode", "round_prefer_floor"),
        call.real("cubic_coeff_a", -0.75),
        bool(call.integer("exclude_outside")),
        bool(call.integer("antialias")),
        call.real("extrapolation_value", 0.0),
    )
    items = (None if value is None else call.items(value) for value in (region, scales, sizes))
    policy = call.text("keep_aspect_ratio_policy", "stretch")
    return call.function(resize, x, *items, call.integers("axes"), policy, how)


@operator("Upsample", "Resize")
def upsample(call: Call, x: Value, scales: Maybe = None) -> Output:
    mode = call.text("mode", "nearest")
    how = Interpolation(
        mode if mode == "nearest" else "linear", "asymmetric", "floor", -0.75, False, False, 0.0
    )
    factors = call.attributes.get("scales") if scales is None else call.items(scales)
    return call.function(resize, x, None, factors, None, None, "stretch", how)
