"""The operators, by family; importing this package registers them."""

from . import (
    activation,
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
