"""A single call through the server against the same computation in process.

Saliency with SqueezeNet 1.1 (real weights where INTERPRET_SHARED_DATA has them, else random ones)
of 1, 8 and 32 images of 3x224x224 float32: 0.6, 4.8 and 19 MB. In process: Captum's Saliency on the
TorchScript archive, which is what a caller without the server would write, and this project's own
classifier. All sides go from a numpy array to a numpy array and use every core.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import interpret_client

from .._networks import Images, InProcess, Labels, network
from .._sampling import Block, Call, Figures, in_turn, ratio, spread
from .._serving import MODES, serve_all

AIMS = {1: 1.15, 8: 1.2, 32: 1.3}  # rows -> largest ratio to Captum, on a CPU


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        net = network("squeezenet", Path(folder))
        here = InProcess(net)
        with serve_all(net) as servers:
            clients = {
                mode: interpret_client.connect(served.address) for mode, served in servers.items()
            }
            figures: dict[str, Any] = {}
            for rows, aim in AIMS.items():
                images, labels = net.images(rows), np.arange(rows)
                sides: dict[str, Call] = {
                    "captum": partial(here.captum, images, labels),
                    "classifier": partial(here.classifier, images, labels),
                    **{
                        mode: partial(_ask, client, images, labels)
                        for mode, client in clients.items()
                    },
                }
                for side in sides.values():
                    side()
                block = Block() if rows < 32 else Block(seconds=0, calls=1, uncounted=0)
                blocks = {name: partial(block.median, side) for name, side in sides.items()}
                times = in_turn(blocks, 2 if quick else 7)
                figures[str(rows)] = _figures(times, images.nbytes, aim)
            for client in clients.values():
                client.close()
    return {"network": net.name, "weights": net.weights, "rows": figures}


def _ask(client: interpret_client.Client, images: Images, labels: Labels) -> None:
    client.run("saliency", "squeezenet", images, target=labels, seed=0)


def _figures(times: Figures, size: int, aim: float) -> dict[str, Any]:
    added = {
        mode: [
            1e3 * (served - here) for served, here in zip(times[mode], times["captum"], strict=True)
        ]
        for mode in MODES
    }
    return {
        "megabytes": round(size / 1e6, 2),
        "milliseconds": {name: spread([1e3 * t for t in values]) for name, values in times.items()},
        "ratio_to_captum": {mode: ratio(times, mode, "captum") for mode in MODES},
        "ratio_to_classifier": {mode: ratio(times, mode, "classifier") for mode in MODES},
        "added_milliseconds": {mode: spread(values) for mode, values in added.items()},
        "aim_ratio_to_captum": aim,
    }
