"""Every attribution method against Captum's at the same settings, in process, at batch 16.

The network is SqueezeNet 1.1 with real weights, on photos where there are any: ours is the archive
as the server loads it, Captum's an eager module, which its hooks need. Both take turns within each
round; a figure is the median over rounds of our time over Captum's in the same round. Where Captum
has no such method, the time is given over that of the forward or forward and backward passes that
the method cannot do without. `--quick` measures one round of 2 rows and writes no file.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from interpret_server.engine.allocator import keep_freed_memory
from interpret_server.models.execution import Execution
from interpret_server.plugin import Batch, Classifier, Job, Targets
from interpret_server.registry import Registry

from ._attribution_cases import CASES, ROWS_AT_ONCE, Attribute, Case, Peer
from ._eager import squeezenet
from ._networks import network
from ._sampling import in_turn, ratio, spread

ROWS = 16
ROUNDS = 3
SECONDS = 0.4  # that a figure takes at least


class _Inert(Job):
    max_rows = ROWS_AT_ONCE


def ours(
    registry: Registry, model: Classifier, name: str, case: Case, peer: Peer
) -> Callable[[], Any]:
    """The plugin's run, parameters decoded beforehand."""
    registration = registry.get(name)
    if registration is None:
        raise SystemExit(f"there is no plugin {name!r}")
    plugin = registration.plugin
    params = plugin.params_type.model_validate(dict(case.params))
    plugin.check(model, params)
    batch = Batch(peer.x, Targets.classes(peer.labels), tuple(range(len(peer.x))))
    return lambda: plugin.run(model, batch, params, _Inert())


def clock() -> Callable[[], float]:
    """Processor time where one thread works, else wall time."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """Seconds of a call: the mean over as many as take `SECONDS`."""
    now = clock()

    def measure() -> float:
        start, count = now(), 0
        while not count or now() - start < SECONDS:
            call()
            count += 1
        return (now() - start) / count

    return measure


def difference(mine: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value; axes of one are filled up."""
    theirs = theirs.detach().reshape(mine.shape) if mine.numel() == theirs.numel() else theirs
    return float(((mine - theirs).abs().max() / theirs.abs().max()).detach())


def compared(
    mine: Callable[[], Any],
    exact: Callable[[], Any],
    theirs: Attribute | None,
    case: Case,
    rounds: int,
) -> dict[str, Any]:
    """The figures of one method.

    Args:
        mine: is timed.
        exact: the same in the form that rounds as the eager module does; its answer counts.
        theirs: Captum's, if it has one.
    """
    mine()
    figures: dict[str, Any] = {}
    if theirs is None:
        times = in_turn({"ours": timed(mine)}, rounds)
    else:
        expected = theirs()
        if case.agrees is not None:
            far = difference(exact().attributions, expected)
            if not far <= case.agrees:
                raise ValueError(f"the answers differ by {far:.2g} of the largest value")
            figures["difference"] = float(f"{far:.2g}")
        times = in_turn({"ours": timed(mine), "captum": timed(theirs)}, rounds)
        figures["ratio"] = ratio(times, "ours", "captum")
    for side, values in times.items():
        figures[f"{side}_ms"] = spread([1e3 * value for value in values], 1)
    return figures


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure and return the figures."""
    keep_freed_memory()  # as the server does; it helps both sides
    served = network("squeezenet", Path())
    if served.weights != "real":
        raise SystemExit("set INTERPRET_SHARED_DATA to the folder with the real classifiers")
    eager, model, exact = squeezenet(served.path), served.classifier(), served.classifier()
    exact.execution = Execution.EXACT
    x = torch.from_numpy(served.images(2 if quick else ROWS))
    with torch.no_grad():
        labels = eager(x).argmax(1)
    peer = Peer(eager, eager.features[12], x, labels)
    registry, figures = Registry.installed(), {}
    warnings.filterwarnings("ignore", module="captum")
    for name in track(CASES, description="attribution", transient=True):
        case = CASES[name]
        theirs = None if case.captum is None else case.captum(peer)
        mine, same = (ours(registry, form, name, case, peer) for form in (model, exact))
        figures[name] = compared(mine, same, theirs, case, 1 if quick else ROUNDS)
    ratios = [item["ratio"]["median"] for item in figures.values() if "ratio" in item]
    return {
        "quick": quick,
        "rows": len(x),
        "threads": torch.get_num_threads(),
        "clock": clock().__name__,
        "largest_ratio": max(ratios),
        "median_ratio": float(np.median(ratios)),
        "methods": figures,
    }


def show(figures: dict[str, Any]) -> None:
    """Print the methods as a table."""
    table = Table(title=f"attribution of {figures['rows']} images")
    for heading in ("method", "ours ms", "Captum ms", "ratio", "quartiles", "difference"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, item in figures["methods"].items():
        row = [name, f"{item['ours_ms']['median']:.0f}"]
        if "ratio" in item:
            found = item["ratio"]
            row += [
                f"{item['captum_ms']['median']:.0f}",
                f"{found['median']:.2f}",
                f"{found['low']:.2f}-{found['high']:.2f}",
                f"{item.get('difference', '')}",
            ]
        table.add_row(*row)
    Console(width=110).print(table)
