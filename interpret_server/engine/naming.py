"""What models may be called, and what callers are told where a name is wrong."""

import re
from collections.abc import Collection

from ..errors import AlreadyExists, InvalidRequest, NotFound

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(@[A-Za-z0-9][A-Za-z0-9._-]{0,127})?")
_HIDDEN = re.compile(r"_audit[A-Za-z0-9._-]{0,122}")


def is_hidden(name: str) -> bool:
    """Whether a name is for models of the front end's own, which callers neither see nor name."""
    return name.startswith("_audit")


def wrong_name(name: str) -> InvalidRequest:
    """The error for what is no name."""
    return InvalidRequest.field(
        "name", f"{name[:40]!r} is no model name; use up to 128 letters, digits, '.', '_' and '-'"
    )


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
    if not (_NAME.fullmatch(name) or _HIDDEN.fullmatch(name)):
        raise wrong_name(name)
    if name in loading:
        raise AlreadyExists(f"name: {name} is being loaded already")
    if name in loaded and not replace:
        raise AlreadyExists(
            f"name: a model called {name} is loaded; unload it first, or ask to replace it"
        )


def no_model(name: str, loaded: Collection[str], field: str = "model") -> NotFound:
    """The error for a model that is not loaded, which a field of the request names."""
    known = ", ".join(name for name in sorted(loaded) if not is_hidden(name)) or "none"
    return NotFound(f"{field}: there is no model {name[:80]!r}; loaded: {known}")
