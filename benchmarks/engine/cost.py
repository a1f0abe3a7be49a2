"""What a call costs by its batch, its steps and its image's size, served and in process.

Batch and size: saliency with SqueezeNet 1.1, in process by Captum on the archive. Steps: PGD on
eight images of 3x32x32 with a ResNet-20, in process by a loop in plain torch.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import interpret_client

from .._networks import InProcess, Network, network
from .._sampling import Block, in_turn, ratio, spread
from .._serving import MODES, Served, serve_all

BATCHES, SIZES, STEPS = (1, 2, 4, 8, 16, 32), (64, 128, 224, 320), (1, 10, 40, 100)
_EPSILON = 1e-5
Sides = dict[str, Callable[[], object]]


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        fixed, small = network("squeezenet", Path(folder)), network("resnet20", Path(folder))
        free = dataclasses.replace(fixed, name="free", sizes_free=True)
        with serve_all(free, small) as servers:
            cells: dict[str, dict[str, Sides]] = {"batch": {}, "size": {}, "steps": {}}
            here, here_small = InProcess(fixed), InProcess(small)
            for rows in BATCHES[:2] if quick else BATCHES:
                cells["batch"][str(rows)] = _saliency(servers, free, here, rows, 224)
            for size in SIZES[:2] if quick else SIZES:
                cells["size"][str(size)] = _saliency(servers, free, here, 1, size)
            for steps in STEPS[:2] if quick else STEPS:
                cells["steps"][str(steps)] = _attack(servers, small, here_small, steps)
            return {
                quantity: {value: _cell(sides, quick=quick) for value, sides in column.items()}
                for quantity, column in cells.items()
            }


def _saliency(
    servers: dict[str, Served], net: Network, here: InProcess, rows: int, size: int
) -> Sides:
    shape = (3, size, size)
    images = dataclasses.replace(net, shape=shape).images(rows)
    labels = np.arange(rows)

    def ask(client: interpret_client.Client) -> None:
        client.run("saliency", net.name, images, target=labels, seed=0)

    return {"in process": partial(here.captum, images, labels), **_asked(servers, ask)}


def _attack(servers: dict[str, Served], net: Network, here: InProcess, steps: int) -> Sides:
    images = net.images(8)
    labels = net.least_likely(images)
    params = {
        "steps": steps,
        "epsilon": _EPSILON,
        "targeted": True,
        "confirm_small_epsilon": True,
    }

    def ask(client: interpret_client.Client) -> None:
        client.run("pgd", net.name, images, target=labels, params=params, seed=0)

    call = partial(here.pgd, images, labels, steps=steps, epsilon=_EPSILON)
    return {"in process": call, **_asked(servers, ask)}


def _asked(servers: dict[str, Served], ask: Callable[[interpret_client.Client], None]) -> Sides:
    clients = {mode: interpret_client.connect(served.address) for mode, served in servers.items()}
    return {mode: partial(ask, client) for mode, client in clients.items()}


def _cell(sides: Sides, *, quick: bool) -> dict[str, Any]:
    for side in sides.values():
        side()
    block = Block(0, 1, 0) if quick else Block(0.1, 1, 0.02)
    times = in_turn(
        {name: partial(block.median, side) for name, side in sides.items()}, 2 if quick else 3
    )
    return {
        "milliseconds": {
            name: spread([1e3 * value for value in values], 2) for name, values in times.items()
        },
        "ratio": {mode: ratio(times, mode, "in process") for mode in MODES},
    }


def show(figures: dict[str, Any]) -> None:
    """Print a table."""
    table = Table("quantity", "value", "in process ms", *(f"{mode} ratio" for mode in MODES))
    for quantity, column in figures.items():
        for value, cell in column.items():
            here = cell["milliseconds"]["in process"]["median"]
            served = (f"{cell['ratio'][mode]['median']:.2f}" for mode in MODES)
            table.add_row(quantity, value, f"{here:.2f}", *served)
    Console().print(table)
