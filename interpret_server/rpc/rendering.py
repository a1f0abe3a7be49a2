"""How a request wants its result drawn."""

from dataclasses import fields
from typing import Any

from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import rendering_pb2 as pictures
from interpret_pictures.options import OptionError, Rendering, Style

from ..errors import InvalidRequest

_ENUMS: dict[str, Any] = {
    "styles": pictures.PictureStyle,
    "channels": pictures.PictureChannels,
    "colors": pictures.PictureColors,
    "backdrop": pictures.PictureBackdrop,
}


def to_rendering(request: runs.RunRequest) -> Rendering | None:
    """The pictures that a request asks for; None for none.

    Raises:
        InvalidRequest: naming the option that is wrong, such as `rendering.percentile`.
    """
    if not request.HasField("rendering"):
        return Rendering() if request.render else None
    message = request.rendering
    options: dict[str, Any] = {}
    for name in (item.name for item in fields(Rendering)):
        value = getattr(message, name)
        if name == "styles":
            words = [_word(name, number, f"{name}[{at}]") for at, number in enumerate(value)]
            options[name] = tuple(word or Style.AUTO for word in words)
        elif name in _ENUMS:
            if word := _word(name, value, name):
                options[name] = word
        elif message.HasField(name):
            options[name] = value
    try:
        return Rendering(**options)
    except OptionError as error:
        raise InvalidRequest.field(f"rendering.{error.field}", error.description) from None


def _word(name: str, number: int, field: str) -> str:
    """The option's word for an enumeration's number; empty where it is unspecified."""
    known = _ENUMS[name]
    if number not in known.values():
        raise InvalidRequest.field(
            f"rendering.{field}", f"{number} is none of {', '.join(known.keys()[1:])}"
        )
    prefix = known.keys()[0].removesuffix("UNSPECIFIED")
    word = known.Name(number).removeprefix(prefix).lower()
    return "" if word == "unspecified" else word
