"""How the commands print: tables for people, one JSON document for machines."""

import json
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ..results import Prediction, plain


def console(*, stderr: bool = False) -> Console:
    """A console that takes the server's words literally and never cuts piped output short."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = max(shutil.get_terminal_size().columns, 160)
    return made


def print_json(value: Any) -> None:
    """`value` as one JSON document."""
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table whose cells are folded rather than cut."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*map(printable, row))
    return made


def pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values, without a heading."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in rows:
        if value:
            made.add_row(name, printable(value))
    return made


def printable(text: str) -> str:
    """A text without what a terminal would obey: names come from files of strangers."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text
    )


def shape_text(shape: Sequence[int]) -> str:
    """`1x28x28`; `?` where a size is free."""
    return "x".join("?" if size < 0 else str(size) for size in shape)


def class_text(prediction: Prediction) -> str:
    """The most probable class: `3 owl 99.1%`."""
    name = f" {prediction.labels[0]}" if prediction.labels else ""
    return f"{prediction.classes[0]}{name} {prediction.probabilities[0]:.1%}"
