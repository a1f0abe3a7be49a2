"""Sentences of reports, in plain words."""

from collections.abc import Mapping
from typing import Any

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}


def percent(value: float | None) -> str:
    """A share, to a tenth of a percent; never 100% or 0% where it is only close."""
    if value is None:
        return "–"
    text = f"{100 * value:.1f}"
    if text == "100.0" and value < 1:
        text = "99.9"
    if text == "0.0" and value > 0:
        text = "0.1"
    return f"{text}%"


def between(interval: tuple[float, float] | list[float]) -> str:
    """An interval of a share."""
    return f"{percent(interval[0])} to {percent(interval[1])}"


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 sample, 2,000 samples."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def verdict(document: Mapping[str, Any]) -> str:
    """Clean and robust accuracy in one sentence or two."""
    total, clean = document["samples"], document["clean"]
    if not total:
        return "No batch was finished, so nothing can be said."
    found = [
        f"Of {counted(total, 'sample')} the model classifies {percent(clean['accuracy'])} "
        f"correctly as they are (95% interval {between(clean['interval'])})"
    ]
    for threat in document["threats"]:
        last = threat["radii"][-1]
        found.append(
            f"{percent(last['accuracy'])} ({between(last['interval'])}) under every change "
            f"that was tried of at most {last['epsilon']:g} in {NORMS[threat['norm']]}"
        )
    corruptions = document["corruptions"]
    if corruptions:
        worst = min(corruptions["cells"], key=lambda cell: (cell["accuracy"], cell["stage"]))
        found.append(
            f"{percent(corruptions['mean'])} in the mean over {len(corruptions['corruptions'])} "
            f"corruptions, least under {worst['corruption'].replace('_', ' ')} of severity "
            f"{worst['severity']} ({percent(worst['accuracy'])})"
        )
    head, *rest = found
    text = f"{head}, and still {'; '.join(rest)}." if rest else f"{head}."
    if document["undone"]:
        text += f" The budget ended the audit there: {document['planned']:,} samples were planned."
    return text
