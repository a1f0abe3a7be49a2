"""What models may be called, and what callers are told where a name is wrong."""

import re
from collections.abc import Collection

from ..errors import AlreadyExists, InvalidRequest, NotFound

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(@[A-Za-z0-9][A-Za-z0-9._-]{0,127})?")


def check_name(
    name: str, *, loading: Collection[str], loaded: Collection[str], replace: bool
) -> None:
    """Refuse a name that a model cannot get now.

    Args:
        name: to be given.
        loading: names of models that are being loaded.
        loaded: names in use.
        replace: the model of that name is to be replaced.

    Raises:
        InvalidRequest: it is no name.
        AlreadyExists: it is taken.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest.field(
            "name",
            f"{name[:40]!r} is no model name; use up to 128 letters, digits, '.', '_' and '-'",
        )
    if name in loading:
        raise AlreadyExists(f"name: {name} is being loaded already")
    if name in loaded and not replace:
        raise AlreadyExists(
            f"name: a model called {name} is loaded; unload it first, or ask to replace it"
        )


def no_model(name: str, loaded: Collection[str], field: str = "model") -> NotFound:
    """The error for a model that is not loaded, which a field of the request names."""
    known = ", ".join(sorted(loaded)) or "none"
    return NotFound(f"{field}: there is no model {name[:80]!r}; loaded: {known}")
