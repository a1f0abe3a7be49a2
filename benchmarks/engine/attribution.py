"""Throughput of 1 to 64 concurrent callers of saliency, with one image a call.

In process: Captum's Saliency on the archive, and this project's classifier, one image after the
other and in batches of 16.
"""

from typing import Any

import numpy as np

from .._networks import Images, InProcess, Labels
from ._throughput import Compute, Work, measure


def _here(here: InProcess) -> dict[str, Compute]:
    return {"captum": here.captum, "classifier": here.classifier}


def _labels(_: Any, images: Images) -> Labels:
    return np.arange(len(images))


WORK = Work("squeezenet", "saliency", {}, _here, _labels, calls=4, least=128)


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure and return the figures."""
    return measure(WORK, 1 if quick else 3, quick=quick)
