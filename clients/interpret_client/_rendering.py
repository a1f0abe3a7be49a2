"""How a caller wants a result drawn: as a message, and without a server."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from interpret_api.v1 import rendering_pb2 as pictures
from interpret_pictures.options import Choice, OptionError, Rendering

from ._codec import to_array
from .errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image

_PREFIXES = {
    "styles": "PICTURE_STYLE_",
    "channels": "PICTURE_CHANNELS_",
    "colors": "PICTURE_COLORS_",
    "backdrop": "PICTURE_BACKDROP_",
}


def read_rendering(choice: Choice) -> Rendering | None:
    """How to draw a result, in any of the forms that callers write; None for not at all.

    Raises:
        InvalidRequest: naming the option that is wrong, such as `rendering.alpha`.
    """
    try:
        return Rendering.of(choice)
    except OptionError as error:
        raise InvalidRequest.field(f"rendering.{error.field}", error.description) from None


def encode_rendering(rendering: Rendering | None) -> pictures.Rendering | None:
    """The same as a message; None where nothing is drawn, or all is as by default."""
    if rendering is None or rendering == Rendering():
        return None
    message = pictures.Rendering()
    for name, value in asdict(rendering).items():
        if name == "styles":
            message.styles.extend(_number(name, style) for style in value)
        else:
            setattr(message, name, _number(name, value) if name in _PREFIXES else value)
    return message


def draw_row(
    rows: Any,
    choice: Choice,
    row: int,
    inputs: Any,
    layout: str | None,
    bounds: tuple[float, float] | None,
    names: Sequence[str],
) -> "Image":
    """One row of an attribution in one style; see `Result.picture`."""
    from interpret_pictures.drawing import Scene
    from interpret_pictures.rows import draw_row as drawn

    options = read_rendering(choice) or Rendering()
    if len(options.styles) != 1:
        raise InvalidRequest.field("rendering.styles", "give one style")
    given = None if inputs is None else to_array(inputs, "inputs")[row : row + 1]
    shape = rows.shape[1:] if given is None else given.shape[1:]
    scene = Scene(given, layout or _layout(shape), bounds, [names] if names else ())
    of_row = scene.row(rows[row], 0, signed=bool((rows < 0).any()))
    found, problem = drawn(of_row, options.styles[0], options)
    if not found:
        raise InvalidRequest.field("rendering.styles", problem)
    if problem:
        warnings.warn(problem, stacklevel=3)
    return next(iter(found.values()))


def _layout(shape: Sequence[int]) -> str:
    if len(shape) == 3:
        return "HWC" if shape[2] <= 4 < shape[0] else "CHW"
    return "other"


def _number(name: str, option: StrEnum) -> Any:
    return getattr(pictures, _PREFIXES[name] + option.name)
