"""What may be chosen about a picture: one value for the wire, the server and the client."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any


class Style(StrEnum):
    """How an attribution is drawn."""

    AUTO = "auto"  # signed where a value is negative, otherwise a heatmap
    HEATMAP = "heatmap"  # magnitudes
    SIGNED = "signed"  # two colours around zero
    OVERLAY = "overlay"  # over the input
    TOP_K = "top_k"  # the input where its attribution is among the largest
    OBJECT_MASK = "object_mask"  # the object that the saliency lies on, cut out


class Channels(StrEnum):
    """How the channels of a position become one value."""

    AUTO = "auto"  # sum for the embedding of a token, otherwise max_abs
    MAX_ABS = "max_abs"  # that of the largest magnitude, with its sign
    SUM = "sum"
    MEAN = "mean"


class Colors(StrEnum):
    """Colour maps."""

    AUTO = "auto"  # blue_red for signed values, otherwise inferno
    INFERNO = "inferno"
    VIRIDIS = "viridis"
    GRAY = "gray"
    BLUE_RED = "blue_red"


class Backdrop(StrEnum):
    """The input under an overlay and around a top-k mask."""

    GRAY = "gray"
    COLOR = "color"


class OptionError(ValueError):
    """An option has no such value: `field` says which, `description` what it takes."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


@dataclass(frozen=True)
class Rendering:
    """How attributions are drawn. Names of styles and the like may be given as text.

    Args:
        styles: one picture of each for every row.
        percentile: in (0, 100]: magnitudes beyond this percentile of a row's magnitudes are drawn
            as if they were equal to it.
        alpha: in [0, 1]: how opaque an overlay is where an attribution is largest.
        top: in (0, 1]: share of the positions that `top_k` keeps.
        channels: how the channels of a position become one value.
        colors: the colour map.
        backdrop: the input under an overlay and around a top-k mask, in grey or colour.
        foreground: in [0, 1]: quantile of the saliency above which `object_mask` knows the object.
        background: in [0, foreground]: quantile up to which it knows the background.
        smoothing: in [0, 0.5]: standard deviation of the Gaussian that evens the saliency out
            before the quantiles are taken, as a share of the shorter side; 0 for none.

    Raises:
        OptionError: a value is out of its range.
    """

    styles: tuple[Style, ...] = (Style.AUTO,)
    percentile: float = 99.0
    alpha: float = 0.8
    top: float = 0.1
    channels: Channels = Channels.AUTO
    colors: Colors = Colors.AUTO
    backdrop: Backdrop = Backdrop.GRAY
    foreground: float = 0.95
    background: float = 0.3
    smoothing: float = 1 / 64

    def __post_init__(self) -> None:
        given = [self.styles] if isinstance(self.styles, str) else self.styles
        if not isinstance(given, Iterable):
            raise OptionError("styles", "give names of styles")
        styles = tuple(dict.fromkeys(_named("styles", Style, style) for style in given))
        self._set("styles", styles or (Style.AUTO,))
        self._set("channels", _named("channels", Channels, self.channels))
        self._set("colors", _named("colors", Colors, self.colors))
        self._set("backdrop", _named("backdrop", Backdrop, self.backdrop))
        for name, (low, high) in _RANGES.items():
            self._set(name, _number(name, getattr(self, name), low, high))
        for name in ("percentile", "top"):
            if getattr(self, name) == 0:
                raise OptionError(name, "give a number greater than 0")
        if self.background > self.foreground:
            raise OptionError(
                "background", f"{self.background} is above foreground, {self.foreground}"
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def of(cls, choice: "Choice") -> "Rendering | None":
        """A choice in any of the forms that callers write; None for no picture.

        Args:
            choice: `True`, a style, several, a mapping of options (`style` or `styles` among
                them), or a `Rendering`.

        Raises:
            OptionError: naming the option that is wrong.
        """
        if choice is None or choice is False:
            return None
        if choice is True:
            return cls()
        if isinstance(choice, cls):
            return choice
        if not isinstance(choice, Mapping):
            return cls(styles=choice)  # type: ignore[arg-type]
        options = {str(name): value for name, value in choice.items()}
        if "style" in options:
            if "styles" in options:
                raise OptionError("styles", "give style or styles, not both")
            options["styles"] = options.pop("style")
        names = [item.name for item in fields(cls)]
        for name in options:
            if name not in names:
                raise OptionError(name, f"there is no such option; there are {', '.join(names)}")
        return cls(**options)


Choice = Rendering | bool | str | Iterable[str] | Mapping[str, Any] | None

_RANGES = {
    "percentile": (0.0, 100.0),
    "alpha": (0.0, 1.0),
    "top": (0.0, 1.0),
    "foreground": (0.0, 1.0),
    "background": (0.0, 1.0),
    "smoothing": (0.0, 0.5),
}


def _named(field: str, kind: type[StrEnum], value: Any) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise OptionError(field, f"{value!r} is none of {', '.join(kind)}") from None


def _number(field: str, value: Any, low: float, high: float) -> float:
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high:
        raise OptionError(field, f"give a number from {low:g} to {high:g}, not {value!r}")
    return number
