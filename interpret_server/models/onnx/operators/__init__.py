"""The operators, by family; importing this package registers them."""

from . import (
    activation,
    control,
    convolution,
    elementwise,
    indexing,
    integer_products,
    linear,
    microsoft_quantised,
    normalisation,
    pooling,
    recurrent,
    reduction,
    resize,
    shape,
)

__all__ = [
    "activation",
    "control",
    "convolution",
    "elementwise",
    "indexing",
    "integer_products",
    "linear",
    "microsoft_quantised",
    "normalisation",
    "pooling",
    "recurrent",
    "reduction",
    "resize",
    "shape",
]
