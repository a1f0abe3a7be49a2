"""Attacks against those of the same name in Foolbox and torchattacks, with the same budget.

On the advertorch MNIST pair, on images that are classified correctly. Within a radius the figure is
the share of rows won; of attacks for the smallest change it is the median distance in the attack's
norm, where a row that was not won counts as infinitely far. What peers return is judged by the
eager network, and only counts inside the ball and the bounds. `ATTACKS=jsma,pgd` picks attacks.
`--quick` takes few rows of the first cases and writes nothing.
"""

import os
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from interpret_server.engine.allocator import keep_freed_memory

from ._attack_peers import Pair, Peers, digits, ours, plugin_of

Run = Callable[[Peers, Pair, Tensor, Tensor], Tensor]
_ORDERS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}
_TELLING = 0.01  # differences that are told
_SLACK = 1e-5  # of the radius, for peers whose float32 results lie on its edge


@dataclass(frozen=True)
class Case:
    """One attack with one budget.

    Args:
        attack: the plugin.
        norm: of the radius or the distance.
        peers: by library.
        params: of the plugin.
        epsilon: radius; None for the smallest change.
        network: `standard` or `robust`.
        rows: how many images.
        next_class: the goal is the class after the true one.
    """

    attack: str
    norm: str
    peers: dict[str, Run]
    params: dict[str, Any] = field(default_factory=dict)
    epsilon: float | None = None
    network: str = "standard"
    rows: int = 60
    next_class: bool = False


def foolbox(name: str, epsilon: float | None = None, **options: Any) -> Run:
    """One of Foolbox's attacks."""

    def run(peers: Peers, pair: Pair, x: Tensor, labels: Tensor) -> Tensor:
        attack = getattr(peers.foolbox.attacks, name)(**options)
        found = attack(peers.foolbox_model(pair.eager), x, labels, epsilons=epsilon)[1]
        return x if found is None else found

    return run


def torchattacks(name: str, **options: Any) -> Run:
    """One of torchattacks' attacks."""

    def run(peers: Peers, pair: Pair, x: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = getattr(peers.torchattacks, name)(pair.eager, **options)(x, labels)
        return found

    return run


def _steps(steps: int, size: float) -> dict[str, Any]:
    return {"steps": steps, "step_size": size}


_ROUNDS = {"steps": 100, "rounds": 5, "initial_constant": 10.0, "abort_early": False}
_FOOLBOX_ROUNDS = {
    "steps": 100, "binary_search_steps": 5, "initial_const": 10.0, "abort_early": False,
}  # fmt: skip

CASES = [
    Case("fgsm", "linf", {
        "foolbox": foolbox("LinfFastGradientAttack", 0.1),
        "torchattacks": torchattacks("FGSM", eps=0.1),
    }, epsilon=0.1),
    Case("fgm", "l2", {"foolbox": foolbox("L2FastGradientAttack", 2.0)}, epsilon=2.0),
    Case("bim", "linf", {
        "foolbox": foolbox("LinfBasicIterativeAttack", 0.1, abs_stepsize=0.02, steps=10),
        "torchattacks": torchattacks("BIM", eps=0.1, alpha=0.02, steps=10),
    }, _steps(10, 0.02), 0.1),
    Case("mi_fgsm", "linf", {
        "foolbox": foolbox(
            "LinfMomentumIterativeFastGradientMethod", 0.1, abs_stepsize=0.02, steps=10
        ),
        "torchattacks": torchattacks("MIFGSM", eps=0.1, alpha=0.02, steps=10),
    }, _steps(10, 0.02), 0.1),
    Case("pgd", "linf", {
        "foolbox": foolbox("LinfPGD", 0.3, abs_stepsize=0.01, steps=40),
        "torchattacks": torchattacks("PGD", eps=0.3, alpha=0.01, steps=40),
    }, _steps(40, 0.01), 0.3, "robust", 200),
    Case("pgd", "l2", {
        "foolbox": foolbox("L2PGD", 1.5, abs_stepsize=0.1, steps=40, random_start=False),
        "torchattacks": torchattacks("PGDL2", eps=1.5, alpha=0.1, steps=40, random_start=False),
    }, _steps(40, 0.1) | {"random_start": False}, 1.5),
    Case("pgd", "l1", {
        "foolbox": foolbox("SparseL1DescentAttack", 10.0, abs_stepsize=1.0, steps=40),
    }, _steps(40, 1.0), 10.0),
    Case("apgd", "linf", {
        "torchattacks": torchattacks("APGD", eps=0.3, steps=30, loss="ce"),
    }, {"steps": 30}, 0.3, "robust", 200),
    Case("square", "linf", {
        "torchattacks": torchattacks("Square", eps=0.12, n_queries=300, n_restarts=1),
    }, {"queries": 300}, 0.12),
    Case("spsa", "linf", {
        "torchattacks": torchattacks(
            "SPSA", eps=0.2, delta=0.01, lr=0.02, nb_iter=10, nb_sample=64
        ),
    }, {"queries": 1290, "samples": 128, "step_size": 0.02}, 0.2, rows=30),
    Case("random_noise", "linf", {
        "foolbox": foolbox("LinfRepeatedAdditiveUniformNoiseAttack", 0.4, repeats=20),
    }, {"samples": 20}, 0.4),
    Case("deepfool", "l2", {
        "foolbox": foolbox("L2DeepFoolAttack", steps=50, candidates=10),
        "torchattacks": torchattacks("DeepFool", steps=50, overshoot=0.02),
    }, rows=40),
    Case("deepfool", "linf", {
        "foolbox": foolbox("LinfDeepFoolAttack", steps=50, candidates=10),
    }, rows=40),
    Case("fab", "linf", {
        "torchattacks": torchattacks("FAB", eps=1.0, steps=100, n_classes=10),
    }, rows=40),
    Case("ddn", "l2", {"foolbox": foolbox("DDNAttack", steps=100)}, rows=40),
    Case("carlini_wagner", "l2", {
        "foolbox": foolbox("L2CarliniWagnerAttack", **_FOOLBOX_ROUNDS, stepsize=0.1),
    }, {**_ROUNDS, "learning_rate": 0.1}, rows=20),
    Case("ead", "l1", {
        "foolbox": foolbox("EADAttack", **_FOOLBOX_ROUNDS, decision_rule="L1"),
    }, {**_ROUNDS, "rule": "l1"}, rows=20),
    Case("jsma", "l0", {
        "torchattacks": torchattacks("JSMA", theta=1.0, gamma=0.5),
    }, {"targeted": True, "gamma": 0.5}, rows=16, next_class=True),
    Case("hop_skip_jump", "l2", {
        "foolbox": foolbox("HopSkipJumpAttack", steps=8),
    }, {"steps": 8, "queries": 10_000}, rows=12),
    Case("boundary", "l2", {
        "foolbox": foolbox("BoundaryAttack", steps=1500),
    }, {"queries": 3000}, rows=8),
]  # fmt: skip


def merit(case: Case, pair: Pair, x: Tensor, goal: Tensor, found: Tensor) -> float:
    """The share won within the radius, or the median distance."""
    with torch.no_grad():
        hit = pair.eager(found).argmax(1) == goal
    size = torch.linalg.vector_norm((found - x).double().flatten(1), _ORDERS[case.norm], dim=1)
    won = (hit if case.next_class else ~hit) & ((found >= 0) & (found <= 1)).flatten(1).all(1)
    if case.epsilon is not None:
        return round(float((won & (size <= case.epsilon * (1 + _SLACK))).double().mean()), 4)
    return round(float(statistics.median(torch.where(won, size, torch.inf).tolist())), 4)


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
    params = dict(case.params)
    if case.epsilon is not None:
        params["epsilon"] = case.epsilon
    if "norm" in plugin_of(case.attack).params_type.model_fields:
        params["norm"] = case.norm
    found = ours(case.attack, pair.served, x, goal, **params)
    figures = {"ours": merit(case, pair, x, goal, found.adversarial)}
    torch.manual_seed(0)
    for name, run in case.peers.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = run(peers, pair, x, labels).detach()
        figures[name] = merit(case, pair, x, goal, theirs)
    least = case.epsilon is None
    return {
        "attack": case.attack,
        "norm": case.norm,
        "network": case.network,
        "epsilon": case.epsilon,
        "rows": len(x),
        "measure": "median distance" if least else "share won",
        "figures": figures,
        "queries": round(float(found.queries.mean()), 1),
        "behind": behind(figures, least=least),
    }


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure and return the figures."""
    keep_freed_memory()
    peers = Peers()
    pairs = {name: Pair.load(name) for name in ("standard", "robust")}
    wanted = os.environ.get("ATTACKS", "").split(",")
    cases = [case for case in CASES if wanted == [""] or case.attack in wanted]
    return [
        measured(case, peers, pairs[case.network], 5 if quick else case.rows)
        for case in track(cases[:4] if quick else cases, "strength", transient=True)
    ]


def show(figures: list[dict[str, Any]]) -> None:
    """Print the cases as a table."""
    table = Table("attack", "norm", "network", "rows", "measure", "figures", "behind")
    for item in figures:
        shown = ", ".join(f"{name} {value:g}" for name, value in item["figures"].items())
        plain = [str(item[key]) for key in ("attack", "norm", "network", "rows", "measure")]
        table.add_row(*plain, shown, "yes" if item["behind"] else "")
    Console(width=130).print(table)
