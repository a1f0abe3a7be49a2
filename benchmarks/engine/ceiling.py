"""How much of the device's measured ceiling is used, with a ResNet-50.

The ceiling is the rate of a large float32 matrix product in the same run. The work is the floating
point operations of one pass forward and one back to the input. On a GPU a call brings 64 images of
3x224x224, on a CPU 16 of 3x128x128. In process: the eager module, at several batch sizes.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import interpret_client

from .._architectures import build
from .._load import rate
from .._networks import DEVICE, Images, Labels, Network, network
from .._sampling import Block, in_turn, spread
from .._serving import MODES, serve_all

GPU = DEVICE.type == "cuda"
ROWS = 64 if GPU else 16
BATCHES = (16, 64, 128, 256) if GPU else (1, 8, 16)
CALLERS = (1, 2, 4) if GPU else (1, 2)
SIDE = 8192 if GPU else 2048  # of the matrices
STEPS = 20 if GPU else 3


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure and return the figures."""
    eager = build("resnet50").module.to(DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        net = network("resnet50", Path(folder))
        images = net.images(max(BATCHES))
        labels = net.least_likely(images[:ROWS])
        work = _work(eager, images[:1])
        block = Block(0, 1, 1e-9) if quick or not GPU else Block(0.3, 3, 0.1)
        sides: dict[str, Callable[[], float]] = {
            "ceiling": lambda: 2 * SIDE**3 / block.median(_product()),
        }
        for rows in BATCHES[-1:] if quick else BATCHES:
            call = partial(_eager, eager, images[:rows])
            sides[f"eager batch {rows}"] = partial(_rate, block, call, rows * work)
        with serve_all(net) as servers:
            for mode, served in servers.items():
                for callers in CALLERS[:1] if quick else CALLERS:
                    sides[f"{mode} saliency callers {callers}"] = partial(
                        _saliency, served.address, net, images[:ROWS], callers, work
                    )
                sides[f"{mode} pgd"] = partial(
                    _pgd, served.address, net, images[:ROWS], labels, work
                )
            for side in sides.values():
                side()
            rates = in_turn(sides, 1 if quick else 3)
    shares = {
        name: [mine / top for mine, top in zip(values, rates["ceiling"], strict=True)]
        for name, values in rates.items()
    }
    best = max(
        (values for name, values in shares.items() if name.startswith("eager")),
        key=lambda values: spread(values)["median"],
    )
    return {
        "image": list(net.shape),
        "rows_of_a_call": ROWS,
        "gigaflop_per_image": round(work / 1e9, 2),
        "ceiling_gigaflop_per_second": spread([value / 1e9 for value in rates["ceiling"]], 1),
        "share_of_ceiling": {
            name: spread(values) for name, values in shares.items() if name != "ceiling"
        },
        "ratio_to_best_eager": {
            name: spread([mine / other for mine, other in zip(values, best, strict=True)])
            for name, values in shares.items()
            if name.split()[0] in MODES
        },
    }


def _product() -> Callable[[], None]:
    a, b = torch.rand(2, SIDE, SIDE, device=DEVICE)

    def call() -> None:
        torch.mm(a, b)
        _wait()

    return call


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def _work(module: nn.Module, image: Images) -> float:
    """Floating point operations of one image, forward and back to the input."""
    x = torch.from_numpy(image).to(DEVICE, copy=True).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        module(x)[:, 0].sum().backward()
    return float(counter.get_total_flops())


def _eager(module: nn.Module, images: Images) -> None:
    x = torch.from_numpy(images).to(DEVICE, copy=True).requires_grad_()
    torch.autograd.grad(module(x)[:, 0].sum(), x)[0].cpu()


def _rate(block: Block, call: Callable[[], None], work: float) -> float:
    return work / block.median(call)


def _saliency(address: str, net: Network, images: Images, callers: int, work: float) -> float:
    def ask(client: interpret_client.Client, _: int) -> None:
        client.run("saliency", net.name, images, target=0, seed=0)

    return len(images) * work * rate(address, callers, 4 if GPU else 1, ask)


def _pgd(address: str, net: Network, images: Images, labels: Labels, work: float) -> float:
    """Steps of an attack that cannot succeed; its queries tell how many passes it made."""
    params = {"steps": STEPS, "epsilon": 1e-6, "confirm_small_epsilon": True, "targeted": True}
    passes: list[float] = []

    def ask(client: interpret_client.Client, _: int) -> None:
        result = client.run("pgd", net.name, images, target=labels, params=params, seed=0)
        passes.append(float(np.sum(result.metrics["queries"])))

    calls = rate(address, 1, 1, ask)
    return calls * passes[0] * work / 2  # forward and back are two queries of like work
