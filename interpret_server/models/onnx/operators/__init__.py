"""The operators, by family; importing this package registers them."""

from . import (
    activation,
    convolution,
    elementwise,
    indexing,
    integer_products,
    linear,
    normalisation,
    pooling,
    reduction,
    resize,
    shape,
)

__all__ = [
    "activation",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "integer_products",
    "normalisation",
    "pooling",
    "reduction",
    "resize",
    "shape",
]
