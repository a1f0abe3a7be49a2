"""The report as one page that needs nothing but itself.

Names of classes, models and data come from files of others: all text is escaped, and a policy in
the page forbids scripts and requests.
"""

import base64
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ... import __version__
from . import plots
from .pictures import Change, picture_key
from .words import NORMS, between, counted, percent

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_CLASSES = 40
_LONGEST_NAME = 60


def render(document: Mapping[str, Any], pictures: Mapping[str, Change]) -> str:
    """The page of a report.

    Args:
        document: by `document.build`.
        pictures: of fragile samples, by `pictures.draw`; those that lack are left out.
    """
    origin, corruptions = document["origin"], document["corruptions"]
    cells = corruptions["cells"] if corruptions else ()
    return page(
        "report.html.j2",
        names=origin["labels"],
        title=document["spec"]["title"] or f"Robustness of {origin['model']}",
        report=document,
        origin=origin,
        run=document["run"],
        suite="of the caller" if document["spec"]["attacks"] else document["spec"]["suite"],
        classes=_weakest(document["classes"]),
        cells={(cell["corruption"], cell["severity"]): cell for cell in cells},
        curves={
            threat["norm"]: curve([(origin["model"], threat)]) for threat in document["threats"]
        },
        pictures={name: _embedded(change) for name, change in pictures.items()},
    )


def drawn_with() -> dict[str, str]:
    """The software that decides how a page looks, with its versions; other draws it otherwise."""
    from matplotlib.ft2font import __freetype_version__ as freetype

    names = ("jinja2", "matplotlib", "numpy", "pillow")
    return {
        "interpret-server": __version__,
        "freetype": freetype,
        "machine": platform.machine(),
        **{name: version(name) for name in names},
    }


def page(template: str, *, names: list[str], **values: Any) -> str:
    """A page by one of the templates here.

    Args:
        names: of the classes.
        values: of the template; all that is not `Markup` is escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS | {"class_name": lambda number: class_name(number, names)}
    return environment.get_template(template).render(values) + "\n"


def class_name(number: int, names: list[str]) -> str:
    """What a class is called, without letters that are not to be seen."""
    if not 0 <= number < len(names):
        return f"class {number}"
    text = "".join(letter if letter.isprintable() else " " for letter in names[number])
    return f"{text[:_LONGEST_NAME]}…" if len(text) > _LONGEST_NAME else text


def _weakest(classes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All classes if there are few, otherwise those of the lowest accuracy."""
    if len(classes) <= _MOST_CLASSES:
        return classes

    def strength(item: Mapping[str, Any]) -> tuple[float, float, int]:
        last = item["robust"][-1]["accuracy"] if item["robust"] else 0.0
        return last, item["accuracy"], item["label"]

    return sorted(classes, key=strength)[:_MOST_CLASSES]


def curve(threats: Sequence[tuple[str, Mapping[str, Any]]]) -> Markup:
    """The robustness curves of one norm, with words for those who do not see them.

    Args:
        threats: what each is called, and its figures.
    """
    norm = NORMS[threats[0][1]["norm"]]
    told = ". ".join(
        f"{name}: "
        + ", ".join(f"{percent(at['accuracy'])} at {at['epsilon']:g}" for at in threat["radii"])
        for name, threat in threats
    )
    label = f"Robust accuracy over the largest change in {norm}. {told}"
    return Markup(plots.robustness_curve(threats, norm, label=label))  # noqa: S704


def _embedded(change: Change) -> dict[str, Any]:
    return {
        "original": _source(change.original),
        "adversarial": _source(change.adversarial),
        "difference": _source(change.difference),
        "magnified": change.magnified,
        "pixels": change.pixels,
        "square": change.image,
    }


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _heat(value: float | None) -> str:
    """A colour that shows a share: red for little, none at a half, blue for much."""
    if value is None:
        return "none"
    color = "205, 70, 50" if value < 0.5 else "40, 125, 200"
    return f"rgba({color}, {abs(value - 0.5) * 1.24:.3f})"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _distance(value: float | None, total: int = 1) -> str:
    """A quantile of distances; there is none where it lies among samples that stand."""
    if value is None:
        return "beyond what was found" if total else "–"
    return f"{value:.4g}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0")


_FILTERS: dict[str, Callable[..., Any]] = {
    "between": between,
    "counted": counted,
    "distance": _distance,
    "heat": _heat,
    "json": lambda value: json.dumps(value, ensure_ascii=False),
    "moment": _moment,
    "norm": lambda name: NORMS[name],
    "percent": percent,
    "picture_key": picture_key,
    "pretty": lambda value: json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False),
    "rough": lambda value: f"{value:.2g}" if value < 100 else f"{value:.0f}",
    "seconds": lambda value: "–" if value is None else f"{value:,.1f}",
    "short": _short,
    "words": lambda text: text.replace("_", " "),
}
