"""The values of an input that matter most, in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..results import Array, ModelInfo, ModelInput, Result

_MOST = 5  # values of a row that are told


def strongest(result: Result, model: ModelInfo, sent: Any) -> Iterator[tuple[str, list[str]]]:
    """What speaks most for and against the target in each row, largest magnitude first.

    Told are inputs whose values have names, and tokens.

    Args:
        result: of an attribution.
        model: that was explained.
        sent: the inputs, as `Client.run` takes them.

    Yields:
        A tensor's name, and for each row a text such as `petal width +1.2, sepal width -0.31`.
    """
    for item in model.inputs:
        tokens = item.kind == "tokens"
        if not (tokens or item.features):
            continue
        field = "token_attributions" if tokens else "attributions"
        found = [name for name in (f"{field}.{item.name}", field) if name in result.tensors]
        if not found or (found[0] == field and _others(model, item)):
            continue
        rows = np.asarray(result.tensors[found[0]], dtype=np.float64)
        rows = rows.reshape(len(rows), -1)
        values = _sent(item, sent)
        texts = [
            _row_text(row, item.features or _positions(values, number, row.size))
            for number, row in enumerate(rows)
            if not item.features or len(item.features) == row.size
        ]
        if len(texts) == len(rows):
            yield found[0], texts


def _others(model: ModelInfo, item: ModelInput) -> bool:
    """Whether another input may be the one that is attributed under the plain name."""
    return any(other is not item and other.kind != "integers" for other in model.inputs)


def _sent(item: ModelInput, sent: Any) -> Array | None:
    values = sent.get(item.name) if isinstance(sent, Mapping) else sent
    return values if isinstance(values, np.ndarray) else None


def _positions(values: Array | None, row: int, count: int) -> list[str]:
    """Tokens by their positions, and by what they are where that is known."""
    if values is None or values[row].size != count:
        return [str(position) for position in range(count)]
    return [f"{position} ({value})" for position, value in enumerate(values[row].ravel().tolist())]


def _row_text(row: Array, names: Sequence[str]) -> str:
    order = np.argsort(-np.abs(row), kind="stable")[:_MOST]
    return ", ".join(f"{names[place]} {row[place]:+.3g}" for place in order)
