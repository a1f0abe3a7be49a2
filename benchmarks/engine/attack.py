"""Throughput of 1 to 64 concurrent callers of PGD with 40 steps, with one image a call.

In process: torchattacks where it is installed, else the same loop in plain torch, on the archive.
The attack is targeted at the least likely class with so small an epsilon that no row succeeds and
every row takes all steps on all sides. On a CPU the network is a ResNet-20 of 32x32 images, on a
GPU SqueezeNet 1.1 of 224x224.
"""

import importlib.util
from functools import partial
from typing import Any

import torch

from .._networks import DEVICE, Images, InProcess, Labels, Network
from ._throughput import Compute, Work, measure

STEPS, EPSILON = 40, 1e-5
_PARAMS = {
    "steps": STEPS,
    "epsilon": EPSILON,
    "targeted": True,
    "confirm_small_epsilon": True,
}


def _here(here: InProcess) -> dict[str, Compute]:
    plain: Compute = partial(here.pgd, steps=STEPS, epsilon=EPSILON)
    if importlib.util.find_spec("torchattacks") is None:
        return {"torch": plain}
    return {"torchattacks": partial(_torchattacks, here), "torch": plain}


def _torchattacks(here: InProcess, images: Images, labels: Labels) -> Images:
    import torchattacks

    attack = torchattacks.PGD(
        here.archive, eps=EPSILON, alpha=2.5 * EPSILON / STEPS, steps=STEPS, random_start=True
    )
    attack.set_mode_targeted_by_label(quiet=True)
    found = attack(torch.from_numpy(images).to(DEVICE), torch.from_numpy(labels).to(DEVICE))
    adversarial: Images = found.detach().cpu().numpy()
    return adversarial


def _labels(net: Network, images: Images) -> Labels:
    return net.least_likely(images)


WORK = Work(
    "squeezenet" if DEVICE.type == "cuda" else "resnet20", "pgd", _PARAMS, _here, _labels, 1, 4
)


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure and return the figures."""
    return measure(WORK, 1 if quick else 2, quick=quick)
