"""What recognisability is measured on: two real ImageNet classifiers and makers of class images."""

import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from interpret_server.models.classifier import Classifier
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.plugin import Batch, Job, Targets
from interpret_server.registry import Registry

from ._exports import fresh, quiet
from ._networks import DEVICE, SHARED

Make = Callable[["Judge", Sequence[int]], Tensor]
DEFAULT = "octaves"
LUCENT = "torch-lucent"
SLOW_PRESETS = ("yosinski_1", "yosinski_2", "yosinski_3", "yosinski_4")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PACKAGES = ("torch-lucent==0.1.8", "kornia==0.4.1", "decorator")


@dataclass(frozen=True)
class Judge:
    """One of the classifiers, which makes images or judges those made on the other.

    Args:
        path: its TorchScript archive.
        classifier: as the server loads it; takes `(N, 3, 224, 224)` in [0, 1].
        normalised: whether the archive itself wants inputs by ImageNet's mean and deviation.
    """

    name: str
    path: Path
    classifier: Classifier
    normalised: bool

    def ranks(self, images: Tensor, classes: Sequence[int]) -> list[int]:
        """How many classes score above each image's own; 0 is top 1."""
        with torch.no_grad():
            logits = torch.cat([self.classifier(part) for part in images.split(8)])
        own = logits.gather(1, torch.tensor(classes, device=logits.device)[:, None])
        return [int(count) for count in (logits > own).sum(1)]


def judges() -> list[Judge]:
    """SqueezeNet 1.1 and MobileNet v2, trained on ImageNet.

    Raises:
        SystemExit: their files are not here.
    """
    files = {
        "squeezenet1_1": ("squeezenet1_1_rgb01.pt", False),
        "mobilenet_v2": ("mobilenet_v2_dequant_imagenetnorm.pt", True),
    }
    found = []
    for name, (file, normalised) in files.items():
        path = SHARED / "models/imagenet" / file
        if not path.exists():
            raise SystemExit(f"recognisability needs {path}; set INTERPRET_SHARED_DATA")
        manifest: dict[str, Any] = {"shape": [3, 224, 224], "bounds": [0, 1]}
        if normalised:
            manifest |= {"mean": _MEAN, "std": _STD}
        loaded = load_classifier(name, path, Manifest.model_validate(manifest), device=DEVICE)
        found.append(Judge(name, path, loaded.classifier, normalised))
    return found


def preset(name: str) -> Make:
    """Images by a preset of `class_visualization`. A row's seed is its class."""

    def make(judge: Judge, classes: Sequence[int]) -> Tensor:
        registration = Registry.installed().get("class_visualization")
        assert registration is not None
        plugin = registration.plugin
        params = plugin.params_type.model_validate({"preset": name})
        targets = Targets.classes(torch.tensor(classes, device=DEVICE))
        start = judge.classifier.neutral(len(classes))
        batch = Batch(start, targets, tuple(classes), has_inputs=False)
        images: Tensor = plugin.run(judge.classifier, batch, params, Job()).images
        return images

    return make


def recipe_of_2013(judge: Judge, classes: Sequence[int]) -> Tensor:
    """Ascent of S_c(z) - 0.01 |z|^2 from z = 0, added to the mean image and cut to [0, 1].

    Simonyan et al. 2013, section 2, equation 1, on inputs z normalised by the training set's mean
    and deviation; 200 steps of momentum 0.9 and rate 0.005 on gradients of mean size 1
    (the paper gives no rates).
    """
    mean, std = (torch.tensor(values, device=DEVICE).view(3, 1, 1) for values in (_MEAN, _STD))
    target = torch.tensor(classes, device=DEVICE)[:, None]
    z = torch.zeros(len(classes), 3, 224, 224, device=DEVICE)
    velocity = torch.zeros_like(z)
    for _ in range(200):
        z.requires_grad_()
        score = judge.classifier(mean + std * z).gather(1, target).sum()
        (gradient,) = torch.autograd.grad(score - 0.01 * z.square().sum(), z)
        velocity = 0.9 * velocity + gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
        z = (z + 0.005 * velocity).detach()
    return (mean + std * z).clamp(0, 1)


class Lucent:
    """torch-lucent's default render, one image at a time, as its `render_vis` makes it.

    The package and its old kornia go to a folder of their own; the two modules that it imports
    without needing them here (torchvision, but for `Normalize`, and IPython) are stood in for.
    """

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
        subprocess.run([*command, str(folder), *_PACKAGES], check=True, stderr=subprocess.DEVNULL)
        _stand_in("torchvision.transforms", Normalize=_Normalize)
        _stand_in("torchvision")
        _stand_in("IPython.display")
        _stand_in("IPython")
        sys.path.append(str(folder))
        self._render = importlib.import_module("lucent.optvis.render").render_vis

    def __call__(self, judge: Judge, classes: Sequence[int]) -> Tensor:
        with quiet():
            network = _Hooked(fresh(torch.jit.load(str(judge.path), map_location=DEVICE)))
        images = []
        for label in classes:
            torch.manual_seed(label)
            (image,) = self._render(
                network,
                f"last:{label}",
                preprocess=judge.normalised,
                progress=False,
                show_image=False,
            )
            images.append(torch.from_numpy(image).movedim(-1, 1))
        made = torch.cat(images).to(DEVICE)
        return nn.functional.interpolate(made, size=(224, 224), mode="bilinear")


class _Hooked(nn.Module):
    """An archive, which takes no hooks, behind a module that does; its layer is `last`."""

    def __init__(self, archive: nn.Module) -> None:
        super().__init__()
        self.last = nn.Identity()
        self._run = archive.forward

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self._run(x))
        return logits


class _Normalize:
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean, self._std = (torch.tensor(part).view(3, 1, 1) for part in (mean, std))

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self._mean.to(x)) / self._std.to(x)


def _stand_in(name: str, **members: object) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    sys.modules.setdefault(name, module)


def makers(quick: bool) -> dict[str, Make]:
    """What makes images, by name; the default preset first, and with `quick` alone.

    torch-lucent is left out where it cannot be installed.
    """
    made: dict[str, Make] = {DEFAULT: preset(DEFAULT)}
    if quick:
        return made
    made["recipe of 2013"] = recipe_of_2013
    try:
        made[LUCENT] = Lucent(Path(tempfile.mkdtemp(prefix="lucent-")))
    except (subprocess.CalledProcessError, ImportError) as error:
        print(f"without torch-lucent: {error}", file=sys.stderr)
    return made | {name: preset(name) for name in ("simonyan", *SLOW_PRESETS)}
