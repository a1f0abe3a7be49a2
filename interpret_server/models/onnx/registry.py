"""Which function imports which operator: (domain, name) -> the versions that are known."""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from .values import Output

Import: TypeAlias = Callable[..., Output]
MICROSOFT = "com.microsoft"  # the domain of onnxruntime's own operators
F = TypeVar("F", bound=Callable[..., Any])

_OPERATORS: dict[tuple[str, str], list[tuple[int, Import]]] = {}


def operator(*names: str, since: int = 1, domain: str = "") -> Callable[[F], F]:
    """Register a function that imports the operators `names` from opset `since` on.

    It is called with the `Call` and then the node's inputs in order, None for those left out, and
    gives the node's outputs: one value, or a sequence of them.
    """

    def register(function: F) -> F:
        for name in names:
            _OPERATORS.setdefault((domain, name), []).append((since, function))
        return function

    return register


def find(domain: str, name: str, opset: int) -> Import | None:
    """The newest registered function at or below `opset`."""
    known = [entry for entry in _OPERATORS.get((domain, name), ()) if entry[0] <= opset]
    return max(known, key=lambda entry: entry[0])[1] if known else None
