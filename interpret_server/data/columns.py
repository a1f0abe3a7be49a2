"""Tables of named columns: which column holds the class, and which ones make up a row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidRequest
from .calls import FIELD

_CLASSES = ("labels", "label", "class", "target", "y")


@dataclass(frozen=True)
class Shape:
    """What a model takes, as far as a table needs to know it.

    Args:
        row: shape of one row, with -1 where a size is free; None where it is not known.
        features: names of the values of a row, or none.
    """

    row: tuple[int, ...] | None = None
    features: tuple[str, ...] = ()

    def rows(self, values: NDArray[Any]) -> NDArray[Any]:
        """`(N, columns)` as rows of the model, where it takes as many values."""
        row = self.row
        if row is None or -1 in row or math.prod(row) != math.prod(values.shape[1:]):
            return values
        return values.reshape(len(values), *row)


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are used.

    Args:
        values: names, in the order of a row's values.
        label: name of the column of classes, or None.
    """

    values: tuple[str, ...]
    label: str | None

    @classmethod
    def of(cls, names: Sequence[str], shape: Shape, name: str) -> "Columns":
        """Take a model's features by their names, or else all columns but that of the classes.

        Raises:
            InvalidRequest: two columns bear one name, or none is left.
        """
        if len(set(names)) != len(names):
            raise InvalidRequest.field(FIELD, f"two columns of {name} bear one name")
        label = class_column(names)
        wanted = shape.features
        by_name = bool(wanted) and set(wanted) <= set(names)
        values = wanted if by_name else tuple(key for key in names if key != label)
        if not values:
            raise InvalidRequest.field(FIELD, f"{name} has no column of values")
        return cls(tuple(values), label)


def class_column(names: Sequence[str]) -> str | None:
    """The name of the column of classes, or None."""
    return next((key for key in _CLASSES if key in names), None)


def whole_numbers(values: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Classes from a column.

    Raises:
        InvalidRequest: one of them is no whole number.
    """
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    if values.dtype.kind != "f" or not (values == np.trunc(values)).all():
        raise InvalidRequest.field(
            FIELD, f"the labels of {name} are not one whole number for each row"
        )
    return values.astype(np.int64)
