"""Normalisation by statistics of the values themselves, with the deviations held constant.

What is left is linear: `(x - mean(x)) / s * weight + bias` with a constant s (Ali et al. 2022, "XAI
for Transformers: Better Explanations through Conservative Propagation", section 4).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def _centred(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    variance = centred.detach().square().mean(axes, keepdim=True)
    return centred * (variance + epsilon).rsqrt()


def _affine(values: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    values = values if weight is None else values * weight
    return values if bias is None else values + bias


def layer_norm(
    x: Tensor,
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    epsilon: float = 1e-5,
    *_: Any,
) -> Tensor:
    """As `torch.nn.functional.layer_norm`."""
    return _affine(_centred(x, tuple(range(-len(shape), 0)), epsilon), weight, bias)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    epsilon: float = 1e-5,
    *_: Any,
) -> Tensor:
    """As `torch.nn.functional.group_norm`."""
    values = _centred(x.reshape(len(x), groups, -1), (-1,), epsilon).reshape(x.shape)
    shape = (-1, *(1,) * (x.dim() - 2))
    return _affine(
        values,
        None if weight is None else weight.reshape(shape),
        None if bias is None else bias.reshape(shape),
    )


def _layers(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float, _: Any
) -> Tensor:
    return _affine(_centred(x, tuple(range(axis % x.dim(), x.dim())), epsilon), scale, bias)


def _groups(x: Tensor, groups: int, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    width = x.shape[1] // groups
    wide = [value.repeat_interleave(width) for value in (scale, bias)]
    return group_norm(x, groups, wide[0], wide[1], epsilon)


def _instances(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return group_norm(x, x.shape[1], scale, bias, epsilon)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "layer_norm": layer_norm,
    "normalise_layer": _layers,
    "group_norm": group_norm,
    "normalise_groups": _groups,
    "normalise_instances": _instances,
}


def held_constant(module: nn.Module | None, name: str) -> Callable[..., Tensor]:
    """A normalisation with constant deviations, called like the module or the named function."""
    match module:
        case nn.LayerNorm():
            shape, epsilon = module.normalized_shape, module.eps
            return lambda x: layer_norm(x, shape, module.weight, module.bias, epsilon)
        case nn.GroupNorm():
            groups = module.num_groups
            return lambda x: group_norm(x, groups, module.weight, module.bias, module.eps)
        case nn.InstanceNorm1d() | nn.InstanceNorm2d() | nn.InstanceNorm3d():
            settings = (module.weight, module.bias, module.eps)
            return lambda x: group_norm(x, x.shape[1], *settings)
    return _FUNCTIONS[name]
