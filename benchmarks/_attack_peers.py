"""Other attack libraries on the networks of the advertorch MNIST pair, in folders of their own.

torchattacks, Foolbox and ART are installed without their dependencies into a temporary folder, or
read from the folder that `ATTACK_PEERS` names. torchattacks' port of AutoAttack takes 10 steps
unless told otherwise; it is given the 100 of the original.
"""

import importlib
import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interpret_server.models.classifier import Classifier
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.plugin import Batch, Job, Plugin, Targets
from interpret_server.registry import Registry

from ._exports import quiet
from ._networks import DEVICE, SHARED

EPSILON = 0.3
_PACKAGES = (
    "torchattacks==3.5.1", "foolbox==3.3.4", "eagerpy==0.30.0",
    "adversarial-robustness-toolbox==1.20.1", "six",
)  # fmt: skip
_STEPS = 100  # of every attack of AutoAttack


class LeNet(nn.Module):
    """The architecture of the pair, from images `(N, 1, 28, 28)` in [0, 1] to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.hidden, self.last = nn.Linear(64 * 7 * 7, 200), nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.first(x)), 2)
        x = torch.max_pool2d(torch.relu(self.second(x)), 2)
        logits: Tensor = self.last(torch.relu(self.hidden(x.flatten(1))))
        return logits


class _Float32(nn.Module):
    """What ART feeds a network of float32, which may be float64."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


@dataclass(frozen=True)
class Pair:
    """One network: as it is served, and as an eager module with the same weights.

    Args:
        name: `standard` or `robust`, by its training.
        served: as plugins see it.
        eager: as the other libraries take it.
    """

    name: str
    served: Classifier
    eager: LeNet

    @classmethod
    def load(cls, name: str) -> "Pair":
        """Read it from the shared files.

        Raises:
            SystemExit: they are not here.
        """
        training = {"standard": "cln", "robust": "adv"}[name]
        path = SHARED / f"models/mnist/advertorch_lenet5_{training}.pt"
        if not path.exists():
            raise SystemExit(f"this needs {path}; set INTERPRETSHARED_DATA")
        manifest = Manifest.model_validate({"shape": (1, 28, 28), "bounds": (0, 1)})
        served = load_classifier(name, path, manifest, device=DEVICE).classifier
        eager = LeNet().eval().requires_grad_(False).to(DEVICE)
        with quiet():
            archive = torch.jit.load(str(path), map_location=DEVICE)  # type: ignore[no-untyped-call]
        for mine, theirs in zip(eager.parameters(), archive.parameters(), strict=True):
            mine.data.copy_(theirs)
        probe = torch.rand(4, 1, 28, 28, device=DEVICE)
        torch.testing.assert_close(eager(probe), archive(probe))
        labels = torch.zeros(4, dtype=torch.int64, device=DEVICE)
        ours("pgd", served, probe, labels, epsilon=EPSILON, steps=2)  # makes what is made once
        return cls(name, served, eager)

    def correct(self, x: Tensor, labels: Tensor) -> int:
        """How many rows the eager network still gets right."""
        with torch.no_grad():
            return int((self.eager(x).argmax(1) == labels).sum())


def digits(rows: int | None = None) -> tuple[Tensor, Tensor]:
    """The first of MNIST's test images, and their labels."""
    file = np.load(SHARED / "images/mnist_test.npz")
    x = torch.from_numpy(file["x"][:rows].astype("float32") / 255).reshape(-1, 1, 28, 28)
    return x.to(DEVICE), torch.from_numpy(file["y"][:rows].astype("int64")).to(DEVICE)


@cache
def plugin_of(name: str) -> Plugin[Any, Any]:
    """An installed attack."""
    registration = Registry.installed().get(name)
    assert registration is not None
    return registration.plugin


def ours(
    name: str, model: Classifier, x: Tensor, labels: Tensor, seed: int = 0, **params: Any
) -> Any:
    """An attack's result on rows, as the server would run it on one batch."""
    plugin = plugin_of(name)
    made = plugin.params_type.model_validate(params)
    plugin.check(model, made)
    seeds = tuple(range(seed, seed + len(x)))
    return plugin.run(model, Batch(x, Targets.classes(labels), seeds), made, Job())


class Peers:
    """The other libraries."""

    def __init__(self) -> None:
        folder = os.environ.get("ATTACK_PEERS")
        if folder is None:
            folder = tempfile.mkdtemp(prefix="attack-peers-")
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
            subprocess.run([*command, folder, *_PACKAGES], check=True, stderr=subprocess.DEVNULL)
        if folder not in sys.path:
            sys.path.append(str(Path(folder)))

    @cached_property
    def torchattacks(self) -> Any:
        """The module."""
        return importlib.import_module("torchattacks")

    @cached_property
    def foolbox(self) -> Any:
        """The module, without its collection of models, which needs more packages."""
        sys.modules.setdefault("foolbox.zoo", ModuleType("foolbox.zoo"))
        return importlib.import_module("foolbox")

    @cached_property
    def art(self) -> Any:
        """ART's attacks, without the one that needs numba."""
        unused = ModuleType("art.attacks.evasion.brendel_bethge")
        vars(unused)["BrendelBethgeAttack"] = None
        sys.modules.setdefault(unused.__name__, unused)
        return importlib.import_module("art.attacks.evasion")

    def art_attack(self, name: str, network: nn.Module, **options: Any) -> Any:
        """One of ART's attacks, on inputs in [0, 1]."""
        attack = getattr(self.art, name)
        estimators = importlib.import_module("art.estimators.classification.pytorch")
        classifier = estimators.PyTorchClassifier(
            nn.Sequential(_Float32(), network),
            loss=nn.CrossEntropyLoss(),
            input_shape=(1, 28, 28),
            nb_classes=10,
            clip_values=(0, 1),
            device_type=DEVICE.type,
        )
        if "verbose" in inspect.signature(attack).parameters:
            options["verbose"] = False
        return attack(classifier, **options)

    def foolbox_model(self, network: nn.Module) -> Any:
        """A network as Foolbox takes it, on inputs in [0, 1]."""
        return self.foolbox.PyTorchModel(network, bounds=(0, 1), device=DEVICE)

    def auto_attack(self, network: nn.Module, steps: int = _STEPS, seed: int = 0) -> Any:
        """torchattacks' port of AutoAttack, standard, Linf, with the steps of the original."""
        attack = self.torchattacks.AutoAttack(network, eps=EPSILON, n_classes=10, seed=seed)
        for each in attack._autoattack.attacks:
            each.steps = steps
        return attack


def pgd_sides(
    pair: Pair, peers: Peers, x: Tensor, labels: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """PGD with 40 steps of 0.01 from the input: side -> what makes the adversarial images.

    Foolbox and torchattacks take all steps with every row. Ours stops a row at its first success,
    and in the form `all steps` never does.
    """
    settings: dict[str, Any] = {
        "epsilon": EPSILON,
        "step_size": 0.01,
        "steps": 40,
        "random_start": False,
    }
    fool = peers.foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=40, random_start=False)
    model = peers.foolbox_model(pair.eager)
    torchattacks = peers.torchattacks.PGD(
        pair.eager, eps=EPSILON, alpha=0.01, steps=40, random_start=False
    )

    def mine(**more: Any) -> Tensor:
        found: Tensor = ours("pgd", pair.served, x, labels, **settings, **more).adversarial
        return found

    return {
        "ours": mine,
        "ours, all steps": lambda: mine(confidence=1e6),
        "torchattacks": lambda: torchattacks(x, labels),
        "foolbox": lambda: fool(model, x, labels, epsilons=EPSILON)[1],
    }
