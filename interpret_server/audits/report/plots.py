"""Plots as SVG to stand inside a page, the same bytes whenever drawn.

Letters and lines take the page's colours, so that a plot is readable on dark and on light ground.
"""

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from markupsafe import escape

_SIZE = (5.2, 3.0)  # inches; letters stay readable where a page is 400 pixels wide
_INK, _GRID = "#010203", "#040506"  # replaced by the page's colours
SERIES = ("#3d85d8", "#d9772b")  # told apart on both grounds, and by those who see no red or green
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # names may hold dollars
    "svg.hashsalt": "interpret",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "legend.frameon": False,
}
_drawing = Lock()  # matplotlib's styles are of the whole process


def robustness_curve(
    threats: Sequence[tuple[str, Mapping[str, Any]]], norm: str, *, label: str
) -> str:
    """Robust accuracy over the radius, with bands and bars of its intervals.

    Args:
        threats: what each is called, and its figures; a line for each.
        norm: as letters have it.
        label: what is seen, for those who do not see it.
    """
    with _drawing:
        import matplotlib

        with matplotlib.rc_context():
            from matplotlib.figure import Figure

            matplotlib.rcdefaults()  # whatever the user's own settings are
            matplotlib.rcParams.update(_STYLE)
            figure = Figure(figsize=_SIZE, layout="constrained")
            axes = figure.subplots()
            for (name, threat), color in zip(threats, SERIES, strict=False):
                _draw_curve(axes, threat, name, color)
            axes.set_xlabel(f"largest change in {norm}")
            axes.set_ylabel("robust accuracy")
            axes.set_ylim(0, 1.02)
            axes.set_xlim(0)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
            axes.grid(linewidth=0.6)
            if len(threats) > 1:
                axes.legend()
            return _svg(figure, label)


def _draw_curve(axes: Any, threat: Mapping[str, Any], name: str, color: str) -> None:
    curve = threat["curve"]
    if curve["accuracy"][0] is None:
        return
    low, high = zip(*curve["interval"], strict=True)
    known = threat["smallest"] is not None
    axes.fill_between(
        curve["epsilon"], low, high, step="post", color=color, alpha=0.18, linewidth=0
    )
    axes.step(
        curve["epsilon"],
        curve["accuracy"],
        where="post",
        color=color,
        linewidth=1.6,
        linestyle="-" if known else "--",
        label=name,
    )
    at = threat["radii"]
    shares = [item["accuracy"] for item in at]
    below = [item["accuracy"] - item["interval"][0] for item in at]
    above = [item["interval"][1] - item["accuracy"] for item in at]
    axes.errorbar(
        [item["epsilon"] for item in at],
        shares,
        yerr=[[max(0.0, value) for value in values] for values in (below, above)],
        fmt="o",
        color=color,
        markersize=4.5,
        capsize=3,
        linewidth=1.2,
    )


def _svg(figure: Any, label: str) -> str:
    """The figure as an element of a page; its ids begin with a word of its own content."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor").replace(_GRID, "var(--line)")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 inherit", text)
    prefix = f"p{zlib.crc32(text.encode()):08x}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{prefix}", text)
    size = re.search(r'viewBox="[^"]*"', text)
    assert size is not None
    head = f'<svg class="plot" role="img" aria-label="{escape(label)}" {size[0]}>'
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1, flags=re.DOTALL)
