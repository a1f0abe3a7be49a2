"""Networks that the engine's benchmarks serve: real weights where there are any, else random."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from interpret_server.models.classifier import Classifier
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest

from ._architectures import Built, build
from ._exports import export, fresh, quiet

Images: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.int64]

SHARED = Path(os.environ.get("INTERPRET_SHARED_DATA", "../shared/data"))
DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Network:
    """A model file.

    Args:
        name: under which it is served.
        path: a TorchScript archive.
        shape: of one row.
        weights: `real` or `random`.
        sizes_free: images of other heights and widths are served too.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    weights: str
    sizes_free: bool = False

    @property
    def manifest(self) -> dict[str, Any]:
        """What the file does not tell."""
        if not self.sizes_free:
            return {"shape": list(self.shape), "bounds": [0, 1]}
        shape = [self.shape[0], *(None for _ in self.shape[1:])]
        return {"inputs": [{"shape": shape, "example": list(self.shape), "bounds": [0, 1]}]}

    def images(self, rows: int, seed: int = 0) -> Images:
        """Random inputs `(rows, *shape)` in the bounds."""
        return np.random.default_rng(seed).random((rows, *self.shape), dtype=np.float32)

    def archive(self) -> nn.Module:
        """The file as torch itself loads it."""
        with quiet():
            return fresh(torch.jit.load(str(self.path), map_location=DEVICE))

    def classifier(self) -> Classifier:
        """The file as the server loads it."""
        manifest = Manifest.model_validate(self.manifest)
        return load_classifier(self.name, self.path, manifest, device=DEVICE).classifier

    def least_likely(self, images: Images) -> Labels:
        """The classes with the smallest logits; an attack with a tiny radius never reaches them."""
        archive, rows = self.archive(), torch.from_numpy(images)
        with torch.no_grad():
            found = [archive(part.to(DEVICE)).argmin(1).cpu() for part in rows.split(8)]
        labels: Labels = torch.cat(found).numpy()
        return labels


def _lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 200), nn.ReLU(), nn.Linear(200, 10),
    )  # fmt: skip


def _random_lenet() -> Built:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Built("lenet5", _lenet().eval().requires_grad_(False), (1, 28, 28))


def _random_resnet50() -> Built:
    side = 224 if DEVICE.type == "cuda" else 128
    return dataclasses.replace(build("resnet50"), shape=(3, side, side))


@dataclass(frozen=True)
class _Source:
    real: str | None
    random: Callable[[], Built]


_SOURCES = {
    "squeezenet": _Source("models/imagenet/squeezenet1_1_rgb01.pt", partial(build, "squeezenet")),
    "resnet20": _Source("models/cifar10/akamaster_resnet20_rgb01.pt", partial(build, "resnet20")),
    "resnet50": _Source(None, _random_resnet50),
    "lenet5": _Source("models/mnist/advertorch_lenet5_cln.pt", _random_lenet),
}
_SHAPES = {"squeezenet": (3, 224, 224), "resnet20": (3, 32, 32), "lenet5": (1, 28, 28)}


def network(name: str, folder: Path) -> Network:
    """A network by its name; one with random weights is written to `folder`."""
    source = _SOURCES[name]
    if source.real is not None and (SHARED / source.real).exists():
        return Network(name, SHARED / source.real, _SHAPES[name], "real")
    built = source.random()
    return Network(name, export(built, "scripted", folder), built.shape, "random")


class InProcess:
    """What a caller without the server would compute, from numpy arrays to numpy arrays."""

    def __init__(self, network: Network) -> None:
        from captum.attr import Saliency

        self.archive = network.archive()
        self._classifier = network.classifier()
        self._captum = Saliency(self.archive)

    def captum(self, images: Images, labels: Labels) -> Images:
        """Captum's Saliency on the archive."""
        x = torch.from_numpy(images).to(DEVICE, copy=True).requires_grad_()
        return _numpy(self._captum.attribute(x, torch.from_numpy(labels).to(DEVICE)))

    def classifier(self, images: Images, labels: Labels) -> Images:
        """Saliency with this project's classifier."""
        from interpret_server.plugin import Targets

        targets = Targets.classes(torch.from_numpy(labels).to(DEVICE))
        gradient = self._classifier.gradient(torch.from_numpy(images).to(DEVICE), targets)
        return _numpy(gradient.inputs.abs())

    def pgd(self, images: Images, labels: Labels, steps: int, epsilon: float) -> Images:
        """Targeted PGD in the Linf ball on the archive, in plain torch, as torchattacks writes it.

        Source: Madry et al. 2017, section 2.1.
        """
        x = torch.from_numpy(images).to(DEVICE)
        targets = torch.from_numpy(labels).to(DEVICE)
        step, lost = 2.5 * epsilon / steps, nn.CrossEntropyLoss()
        adversarial = (x + torch.empty_like(x).uniform_(-epsilon, epsilon)).clamp(0, 1)
        for _ in range(steps):
            adversarial.requires_grad_()
            loss = -lost(self.archive(adversarial), targets)
            (gradient,) = torch.autograd.grad(loss, adversarial)
            moved = adversarial.detach() + step * gradient.sign()
            adversarial = (x + (moved - x).clamp(-epsilon, epsilon)).clamp(0, 1)
        return _numpy(adversarial)


def _numpy(value: Tensor) -> Images:
    array: Images = value.detach().cpu().numpy()
    return array
