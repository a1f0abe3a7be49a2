"""The cases of `attacks_strength`: one attack with one budget, and its peers.

A peer has the same name, or is the same method under another one: Foolbox's gradient estimator
around PGD is NES, its `SparseL1DescentAttack` PGD in L1. ART's ZOO is no `gradient_estimation`
(it minimises a distance value by value), Foolbox's `brendel_bethge` needs numba, torchattacks' FAB
fails in L1, and nobody has `penalty_adam`, PGD in L0 or Square in L1.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._attack_peers import Pair, Peers

Run = Callable[[Peers, Pair, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One attack with one budget.

    Args:
        attack: the plugin.
        norm: of the radius or the distance; None where any change will do.
        peers: by library.
        params: of the plugin.
        epsilon: radius; None for the smallest change.
        network: `standard` or `robust`.
        rows: how many images.
        next_class: the goal is the class after the true one.
    """

    attack: str
    norm: str | None
    peers: dict[str, Run]
    params: dict[str, Any] = field(default_factory=dict)
    epsilon: float | None = None
    network: str = "standard"
    rows: int = 60
    next_class: bool = False

    @property
    def least(self) -> bool:
        """Whether the measure is the median distance, not the share won."""
        return self.norm is not None and self.epsilon is None


def foolbox(name: str, epsilon: float | None = None, **options: Any) -> Run:
    """One of Foolbox's attacks."""

    def run(peers: Peers, pair: Pair, x: Tensor, labels: Tensor) -> Tensor:
        attack = getattr(peers.foolbox.attacks, name)(**options)
        return _by_foolbox(peers, attack, pair, x, labels, epsilon)

    return run


def foolbox_estimated(name: str, epsilon: float, samples: int, **options: Any) -> Run:
    """One of Foolbox's attacks by gradients, on gradients estimated from normal noise of 0.001.

    Its estimate weighs the noise of all rows by the loss of all rows, so rows are attacked one at
    a time.
    """

    def run(peers: Peers, pair: Pair, x: Tensor, labels: Tensor) -> Tensor:
        estimated = peers.foolbox.gradient_estimators.es_gradient_estimator(
            getattr(peers.foolbox.attacks, name),
            samples=samples,
            sigma=1e-3,
            bounds=(0, 1),
            clip=False,
        )
        attack = estimated(**options)
        rows = [slice(row, row + 1) for row in range(len(x))]
        return torch.cat(
            [_by_foolbox(peers, attack, pair, x[row], labels[row], epsilon) for row in rows]
        )

    return run


def _by_foolbox(
    peers: Peers, attack: Any, pair: Pair, x: Tensor, labels: Tensor, epsilon: float | None
) -> Tensor:
    found = attack(peers.foolbox_model(pair.eager), x, labels, epsilons=epsilon)[1]
    return x if found is None else found


def torchattacks(name: str, **options: Any) -> Run:
    """One of torchattacks' attacks."""

    def run(peers: Peers, pair: Pair, x: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = getattr(peers.torchattacks, name)(pair.eager, **options)(x, labels)
        return found

    return run


def art(
    name: str,
    *,
    each: bool = False,
    softmax: bool = False,
    next_class: bool = False,
    **options: Any,
) -> Run:
    """One of ART's attacks.

    Args:
        name: of the class.
        each: rows are attacked one at a time.
        softmax: it takes probabilities.
        next_class: it is to reach the class after the true one.
        options: of the attack.
    """

    def run(peers: Peers, pair: Pair, x: Tensor, labels: Tensor) -> Tensor:
        network = nn.Sequential(pair.eager, nn.Softmax(1)) if softmax else pair.eager
        goal = np.eye(10, dtype="float32")[((labels + next_class) % 10).cpu()]

        def attack() -> Any:
            return peers.art_attack(name, network.eval(), **options)

        parts = range(len(x)) if each else [slice(None)]
        found = [
            attack().generate(
                x[part].reshape(-1, *x.shape[1:]).cpu().numpy(), goal[part].reshape(-1, 10)
            )
            for part in parts
        ]
        return torch.from_numpy(np.concatenate(found)).to(x)

    return run


def _steps(steps: int, size: float) -> dict[str, Any]:
    return {"steps": steps, "step_size": size}


def _art_steps(epsilon: float, steps: int, size: float) -> dict[str, Any]:
    return {"eps": epsilon, "eps_step": size, "max_iter": steps}


def _art_apgd(epsilon: float, steps: int) -> dict[str, Any]:
    return {
        "eps": epsilon, "eps_step": 2 * epsilon, "max_iter": steps, "nb_random_init": 1,
        "loss_type": "cross_entropy",
    }  # fmt: skip


_ROUNDS = {"steps": 100, "rounds": 5, "initial_constant": 10.0, "abort_early": False}
_FOOLBOX_ROUNDS = {
    "steps": 100, "binary_search_steps": 5, "initial_const": 10.0, "abort_early": False,
}  # fmt: skip
_ART_ROUNDS: dict[str, Any] = {
    "max_iter": 100,
    "binary_search_steps": 5,
    "initial_const": 10.0,
    "batch_size": 32,
}
_ART_UNIVERSAL: dict[str, Any] = {
    "max_iter": 2, "delta": 0.0, "attacker_params": {"max_iter": 10, "verbose": False},
}  # fmt: skip

CASES = [
    Case("fgsm", "linf", {
        "foolbox": foolbox("LinfFastGradientAttack", 0.1),
        "torchattacks": torchattacks("FGSM", eps=0.1),
        "art": art("FastGradientMethod", eps=0.1),
    }, epsilon=0.1, rows=200),
    Case("fgm", "l2", {
        "foolbox": foolbox("L2FastGradientAttack", 2.0),
        "art": art("FastGradientMethod", norm=2, eps=2.0),
    }, epsilon=2.0, rows=200),
    Case("fgm", "l1", {
        "foolbox": foolbox("L1FastGradientAttack", 20.0),
        "art": art("FastGradientMethod", norm=1, eps=20.0),
    }, epsilon=20.0, rows=200),
    Case("bim", "linf", {
        "foolbox": foolbox("LinfBasicIterativeAttack", 0.1, abs_stepsize=0.02, steps=10),
        "torchattacks": torchattacks("BIM", eps=0.1, alpha=0.02, steps=10),
        "art": art("BasicIterativeMethod", **_art_steps(0.1, 10, 0.02)),
    }, _steps(10, 0.02), 0.1, rows=200),
    Case("bim", "l2", {
        "foolbox": foolbox("L2BasicIterativeAttack", 1.5, abs_stepsize=0.3, steps=10),
    }, _steps(10, 0.3), 1.5, rows=200),
    Case("bim", "l1", {
        "foolbox": foolbox("L1BasicIterativeAttack", 10.0, abs_stepsize=2.0, steps=10),
    }, _steps(10, 2.0), 10.0, rows=200),
    Case("mi_fgsm", "linf", {
        "foolbox": foolbox(
            "LinfMomentumIterativeFastGradientMethod", 0.1, abs_stepsize=0.02, steps=10
        ),
        "torchattacks": torchattacks("MIFGSM", eps=0.1, alpha=0.02, steps=10),
        "art": art("MomentumIterativeMethod", **_art_steps(0.1, 10, 0.02)),
    }, _steps(10, 0.02), 0.1, rows=200),
    Case("mi_fgsm", "l2", {
        "foolbox": foolbox(
            "L2MomentumIterativeFastGradientMethod", 1.5, abs_stepsize=0.3, steps=10
        ),
        "art": art("MomentumIterativeMethod", norm=2, **_art_steps(1.5, 10, 0.3)),
    }, _steps(10, 0.3), 1.5, rows=200),
    Case("mi_fgsm", "l1", {
        "foolbox": foolbox(
            "L1MomentumIterativeFastGradientMethod", 10.0, abs_stepsize=2.0, steps=10
        ),
        "art": art("MomentumIterativeMethod", norm=1, **_art_steps(10.0, 10, 2.0)),
    }, _steps(10, 2.0), 10.0, rows=200),
    Case("pgd", "linf", {
        "foolbox": foolbox("LinfPGD", 0.3, abs_stepsize=0.01, steps=40),
        "torchattacks": torchattacks("PGD", eps=0.3, alpha=0.01, steps=40),
        "art": art("ProjectedGradientDescent", num_random_init=1, **_art_steps(0.3, 40, 0.01)),
    }, _steps(40, 0.01), 0.3, "robust", 200),
    Case("pgd", "l2", {
        "foolbox": foolbox("L2PGD", 1.5, abs_stepsize=0.1, steps=40, random_start=False),
        "torchattacks": torchattacks("PGDL2", eps=1.5, alpha=0.1, steps=40, random_start=False),
        "art": art("ProjectedGradientDescent", norm=2, **_art_steps(1.5, 40, 0.1)),
    }, _steps(40, 0.1) | {"random_start": False}, 1.5, rows=200),
    Case("pgd", "l1", {
        "foolbox": foolbox("SparseL1DescentAttack", 10.0, abs_stepsize=1.0, steps=40),
        "art": art("ProjectedGradientDescent", norm=1, **_art_steps(10.0, 40, 1.0)),
    }, _steps(40, 1.0), 10.0, rows=200),
    Case("apgd", "linf", {
        "torchattacks": torchattacks("APGD", eps=0.3, steps=30, loss="ce"),
        "art": art("AutoProjectedGradientDescent", **_art_apgd(0.3, 30)),
    }, {"steps": 30}, 0.3, "robust", 1000),
    Case("apgd", "l2", {
        "torchattacks": torchattacks("APGD", norm="L2", eps=1.3, steps=30, loss="ce"),
        "art": art("AutoProjectedGradientDescent", norm=2, **_art_apgd(1.3, 30)),
    }, {"steps": 30}, 1.3, rows=200),
    Case("apgd", "l1", {
        "art": art("AutoProjectedGradientDescent", norm=1, **_art_apgd(8.0, 30)),
    }, {"steps": 30}, 8.0, rows=200),
    Case("square", "linf", {
        "torchattacks": torchattacks("Square", eps=0.12, n_queries=300, n_restarts=1),
        "art": art("SquareAttack", eps=0.12, max_iter=300),
    }, {"queries": 300}, 0.12, rows=100),
    Case("square", "l2", {
        "torchattacks": torchattacks("Square", norm="L2", eps=2.0, n_queries=300, n_restarts=1),
        "art": art("SquareAttack", norm=2, eps=2.0, max_iter=300),
    }, {"queries": 300}, 2.0, rows=100),
    Case("simba", "l2", {
        "art": art("SimBA", softmax=True, each=True, max_iter=150, epsilon=0.2, freq_dim=7),
    }, {"queries": 300, "step_size": 0.2}, 3.0, rows=30),
    Case("simba", "l2", {
        "art": art("SimBA", softmax=True, each=True, attack="px", max_iter=150, epsilon=0.5),
    }, {"queries": 300, "step_size": 0.5, "basis": "pixel"}, 3.0, rows=30),
    Case("nes", "linf", {
        "foolbox": foolbox_estimated("LinfPGD", 0.2, 50, abs_stepsize=0.02, steps=20),
    }, {"queries": 1020 + 3, "samples": 50, "step_size": 0.02}, 0.2, rows=30),
    Case("nes", "l2", {
        "foolbox": foolbox_estimated("L2PGD", 2.0, 50, abs_stepsize=0.2, steps=20),
    }, {"queries": 1020 + 3, "samples": 50, "step_size": 0.2}, 2.0, rows=30),
    Case("spsa", "linf", {
        "torchattacks": torchattacks(
            "SPSA", eps=0.2, delta=0.01, lr=0.02, nb_iter=10, nb_sample=64
        ),
    }, {"queries": 1290, "samples": 128, "step_size": 0.02}, 0.2, rows=30),
    Case("universal_perturbation", "linf", {
        "art": art("UniversalPerturbation", eps=0.3, **_ART_UNIVERSAL),
    }, {"steps": 60}, 0.3),
    Case("universal_perturbation", "l2", {
        "art": art("UniversalPerturbation", norm=2, eps=3.0, **_ART_UNIVERSAL),
    }, {"steps": 60}, 3.0),
    Case("spatial", None, {
        "foolbox": foolbox(
            "SpatialAttack", max_translation=1.4, max_rotation=20, num_translations=5,
            num_rotations=5,
        ),
        "art": art(
            "SpatialTransformation", each=True, max_translation=5.0, num_translations=5,
            max_rotation=20.0, num_rotations=5,
        ),
    }, {"angles": 5, "shifts": 5, "rotation": 20.0, "translation": 0.05}, rows=100),
    Case("random_noise", "linf", {
        "foolbox": foolbox("LinfRepeatedAdditiveUniformNoiseAttack", 0.4, repeats=20),
    }, {"samples": 20}, 0.4, rows=200),
    Case("random_noise", "l2", {
        "foolbox": foolbox("L2RepeatedAdditiveGaussianNoiseAttack", 8.0, repeats=20),
    }, {"samples": 20, "distribution": "gaussian"}, 8.0, rows=2000),
    Case("deepfool", "l2", {
        "foolbox": foolbox("L2DeepFoolAttack", steps=50, candidates=10),
        "torchattacks": torchattacks("DeepFool", steps=50, overshoot=0.02),
        "art": art("DeepFool", max_iter=50, epsilon=0.02, batch_size=40),
    }, rows=40),
    Case("deepfool", "linf", {
        "foolbox": foolbox("LinfDeepFoolAttack", steps=50, candidates=10),
    }, rows=40),
    Case("fab", "linf", {
        "torchattacks": torchattacks("FAB", eps=1.0, steps=100, n_classes=10),
    }, rows=100),
    Case("fab", "l2", {
        "torchattacks": torchattacks("FAB", norm="L2", eps=10.0, steps=100, n_classes=10),
    }, rows=100),
    Case("ddn", "l2", {"foolbox": foolbox("DDNAttack", steps=100)}, rows=40),
    Case("carlini_wagner", "l2", {
        "foolbox": foolbox("L2CarliniWagnerAttack", **_FOOLBOX_ROUNDS, stepsize=0.1),
        "torchattacks": torchattacks("CW", c=10, steps=500, lr=0.1),
        "art": art("CarliniL2Method", **{**_ART_ROUNDS, "max_iter": 25}, learning_rate=0.1),
    }, {**_ROUNDS, "learning_rate": 0.1}, rows=20),
    Case("carlini_wagner", "linf", {
        "art": art("CarliniLInfMethod", max_iter=60, learning_rate=0.1, initial_const=1.0),
    }, {"steps": 60, "learning_rate": 0.1, "initial_constant": 1.0}, rows=6),
    Case("carlini_wagner", "l0", {
        "art": art("CarliniL0Method", **{**_ART_ROUNDS, "max_iter": 25}, learning_rate=0.1),
    }, {"steps": 25, "learning_rate": 0.1, "initial_constant": 10.0}, rows=20),
    Case("ead", "l1", {
        "foolbox": foolbox("EADAttack", **_FOOLBOX_ROUNDS, decision_rule="L1"),
        "torchattacks": torchattacks(
            "EADL1", max_iterations=100, binary_search_steps=5, initial_const=10.0,
            abort_early=False, beta=0.01,
        ),
        "art": art(
            "ElasticNet", **_ART_ROUNDS, beta=0.01, decision_rule="L1", learning_rate=0.01
        ),
    }, {**_ROUNDS, "rule": "l1"}, rows=60),
    Case("jsma", "l0", {
        "torchattacks": torchattacks("JSMA", theta=1.0, gamma=0.5),
        "art": art("SaliencyMapMethod", next_class=True, theta=1.0, gamma=0.5),
    }, {"targeted": True, "gamma": 0.5}, rows=16, next_class=True),
    Case("hop_skip_jump", "l2", {
        "foolbox": foolbox("HopSkipJumpAttack", steps=8),
        "art": art("HopSkipJump", max_iter=8),
    }, {"steps": 8, "queries": 10_000}, rows=12),
    Case("hop_skip_jump", "linf", {
        "foolbox": foolbox("HopSkipJumpAttack", steps=8, constraint="linf"),
        "art": art("HopSkipJump", norm=np.inf, max_iter=8),
    }, {"steps": 8, "queries": 10_000}, rows=12),
    Case("boundary", "l2", {
        "foolbox": foolbox("BoundaryAttack", steps=1500),
        "art": art("BoundaryAttack", targeted=False, max_iter=75, sample_size=20),
    }, {"queries": 3000}, rows=24),
]  # fmt: skip
