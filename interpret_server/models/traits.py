"""What a classifier tells of itself: what may be asked of it, its layers, bounds and gradients."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from torch import Tensor


class Capability(StrEnum):
    """What a plugin may require of a model."""

    GRADIENT = "gradient"  # logits are differentiable with respect to the input
    LAYERS = "layers"  # intermediate values can be read and targeted
    RECTIFIERS = "rectifiers"  # the network has rectifiers whose backward rule can be replaced
    BOUNDS = "bounds"  # the manifest states the bounds of the input
    SCORES = "scores"  # the file scores classes, rather than naming the winner alone
    DETERMINISTIC = "deterministic"  # the same input gets the same answer every time


@dataclass(frozen=True)
class Layer:
    """An intermediate value.

    Args:
        name: from the source file (module path, ONNX value name).
        kind: a lowercase word such as `relu`, `conv2d`, `add`.
        shape: of one row, without the batch axis; at the example's sizes, where sizes are free.
        node: the FX node that computes it.
        sizes: the shape, with None where it follows the input's free sizes; empty where none does.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    node: str
    sizes: tuple[int | None, ...] = ()


class Bounds(NamedTuple):
    """Smallest and largest input value."""

    lower: float
    upper: float


class Gradient(NamedTuple):
    """A gradient with what its forward pass gave on the way.

    Args:
        inputs: `(N, *input_shape)`, the gradient of each row's objective with respect to its input.
        objective: `(N,)`, the target's value.
        logits: `(N, K)`, where the target is a class.
    """

    inputs: Tensor
    objective: Tensor
    logits: Tensor | None
