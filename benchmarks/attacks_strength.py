"""Attacks against those of the same name in Foolbox, torchattacks and ART, with the same budget.

On the advertorch MNIST pair, on images that are classified correctly. Within a radius the figure is
the share of rows won; of attacks for the smallest change it is the median distance in the attack's
norm, where a row that was not won counts as infinitely far. What peers return is judged by the
eager network, and only counts inside the ball and the bounds. `queries` are forward and backward
passes per row, counted at the network for peers.

A run takes about ten minutes. `ATTACKS=jsma,pgd` measures these attacks anew and keeps the other
figures. `--quick` takes few rows of the first cases and writes nothing.
"""

import json
import os
import statistics
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from interpret_server.engine.allocator import keep_freed_memory

from ._attack_cases import CASES, Case
from ._attack_peers import Pair, Peers, digits, ours, plugin_of
from .attribution import clock

_RESULTS = Path(__file__).parent / "results"
_ORDERS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}
_TELLING = 0.01  # differences that are told
_SLACK = 1e-5  # of the radius, for peers whose float32 results lie on its edge


@dataclass
class _Passes:
    """Rows that went through a network, forwards and backwards."""

    rows: int = 0


@contextmanager
def _counted(network: nn.Module) -> Iterator[_Passes]:
    passes = _Passes()

    def backward(gradient: Tensor) -> None:
        passes.rows += len(gradient)

    def forward(_module: nn.Module, _inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        passes.rows += len(logits)
        if logits.requires_grad:
            logits.register_hook(backward)  # type: ignore[no-untyped-call]

    handle = network.register_forward_hook(forward)
    try:
        yield passes
    finally:
        handle.remove()


def merit(case: Case, pair: Pair, x: Tensor, goal: Tensor, found: Tensor) -> float:
    """The share won, within the radius where there is one, or the median distance."""
    with torch.no_grad():
        hit = pair.eager(found).argmax(1) == goal
    won = (hit if case.next_class else ~hit) & ((found >= 0) & (found <= 1)).flatten(1).all(1)
    if case.norm is not None:
        delta = (found.double() - x.double()).flatten(1)
        size = torch.linalg.vector_norm(delta, _ORDERS[case.norm], dim=1)
        if case.least:
            return round(float(statistics.median(torch.where(won, size, torch.inf).tolist())), 4)
        assert case.epsilon is not None
        won &= size <= case.epsilon * (1 + _SLACK)
    return round(float(won.double().mean()), 4)


def behind(figures: dict[str, float], *, least: bool) -> bool:
    """Whether a peer is better by more than a hundredth: of the distance, or of all rows."""
    others = [value for name, value in figures.items() if name != "ours"]
    if least:
        return figures["ours"] > (1 + _TELLING) * min(others)
    return figures["ours"] < max(others) - _TELLING


def measured(case: Case, peers: Peers, pair: Pair, rows: int) -> dict[str, Any]:
    """Every library's figure."""
    x, labels = digits(2 * rows)
    with torch.no_grad():
        right = torch.nonzero(pair.eager(x).argmax(1) == labels).squeeze(1)[:rows]
    x, labels = x[right], labels[right]
    goal = (labels + 1) % 10 if case.next_class else labels
    now = clock()
    start = now()
    found = ours(case.attack, pair.served, x, goal, **_params(case))
    seconds = {"ours": round(now() - start, 1)}
    figures = {"ours": merit(case, pair, x, goal, found.adversarial)}
    queries = {"ours": round(float(found.queries.mean()), 1)}
    for name, run in case.peers.items():
        torch.manual_seed(0)
        np.random.seed(0)  # what Foolbox and ART draw from
        start = now()
        with warnings.catch_warnings(), _counted(pair.eager) as passes:
            warnings.simplefilter("ignore")
            theirs = run(peers, pair, x, labels).detach()
        seconds[name] = round(now() - start, 1)
        figures[name] = merit(case, pair, x, goal, theirs)
        queries[name] = round(passes.rows / len(x), 1)
    return {
        **_key(case),
        "rows": len(x),
        "measure": "median distance" if case.least else "share won",
        "figures": figures,
        "queries": queries,
        "seconds": seconds,
        "behind": behind(figures, least=case.least),
    }


def _params(case: Case) -> dict[str, Any]:
    params = dict(case.params)
    if case.epsilon is not None:
        params["epsilon"] = case.epsilon
    if "norm" in plugin_of(case.attack).params_type.model_fields:
        params["norm"] = case.norm
    return params


def _key(case: Case) -> dict[str, Any]:
    return {
        "attack": case.attack,
        "norm": case.norm,
        "network": case.network,
        "epsilon": case.epsilon,
        "params": case.params,
    }


def _kept(case: Case) -> dict[str, Any] | None:
    """What the last run found."""
    path = _RESULTS / f"attacks_strength.{'gpu' if torch.cuda.is_available() else 'cpu'}.json"
    items = json.loads(path.read_text())["figures"] if path.exists() else []
    key = _key(case)
    same = (item for item in items if key == {name: item.get(name) for name in key})
    return next(same, None)


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure and return the figures."""
    keep_freed_memory()
    peers = Peers()
    pairs = {name: Pair.load(name) for name in ("standard", "robust")}
    wanted = os.environ.get("ATTACKS", "").split(",")
    figures = []
    for case in track(CASES[:4] if quick else CASES, "strength", transient=True):
        item = None
        if wanted != [""] and case.attack not in wanted:
            item = _kept(case)
        if item is None:
            item = measured(case, peers, pairs[case.network], 5 if quick else case.rows)
        figures.append(item)
    return figures


def show(figures: list[dict[str, Any]]) -> None:
    """Print the cases as a table."""
    table = Table("attack", "norm", "network", "rows", "measure", "figures", "queries", "behind")
    for item in figures:
        shown = [
            ", ".join(f"{name} {value:g}" for name, value in item[part].items())
            for part in ("figures", "queries")
        ]
        plain = [str(item[key]) for key in ("attack", "norm", "network", "rows", "measure")]
        table.add_row(*plain, *shown, "yes" if item["behind"] else "")
    Console(width=160).print(table)
