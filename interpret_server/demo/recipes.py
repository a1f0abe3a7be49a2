"""How the demonstration calls each plugin, and how it reads the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpret_client import ModelInfo, PluginInfo, Result

from .digits import Digits

# Strong steps along the class against little noise: samples near the modes of p(x|c).
_LANGEVIN: Mapping[str, Any] = {
    "equation": "three_term",
    "steps": 300,
    "epsilon1": 2e-3,
    "epsilon2": 5e-2,
    "epsilon3": 3e-4,
    "priors": [
        {"plugin": "gaussian", "params": {"std": 0.35}},
        {"plugin": "total_variation", "params": {"weight": 0.5}},
    ],
}


@dataclass(frozen=True)
class Recipe:
    """Parameters and wording for one plugin."""

    kind: str
    text: str
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: bool = True
    targeted: bool = True
    judged: bool = False

    def target(self, labels: NDArray[np.int64]) -> Sequence[int] | None:
        """The true label of each digit, where the plugin takes a target."""
        return [int(label) for label in labels] if self.targeted else None

    def caption(self, result: Result, name: str, row: int, digits: Digits) -> str:
        """A line under one picture."""
        label = int(digits.labels[row])
        after = result.after[row] if result.after else None
        if self.kind == "attack" and after is not None:
            return f"{label} → {after.classes[0]} ({after.probabilities[0]:.0%})"
        if self.kind == "synthesis" and after is not None and self.targeted:
            rank = list(after.classes).index(label) if label in after.classes else None
            share = 0.0 if rank is None else after.probabilities[rank]
            return f"class {label}, p = {share:.3f}"
        return f"{label}"

    def summary(self, result: Result) -> str:
        """One line for the table."""
        if self.kind == "attack":
            success = np.asarray(result.tensors["success"], dtype=bool)
            return f"{int(success.sum())} of {len(success)} digits change their label"
        if self.kind == "synthesis" and result.after and self.targeted:
            lowest = min(
                dict(zip(after.classes, after.probabilities, strict=True)).get(row, 0.0)
                for row, after in enumerate(result.after)
            )
            return f"every class with p ≥ {lowest:.3f}"
        if "reconstruction_error" in result.metrics:
            return f"mean error {np.mean(result.metrics['reconstruction_error']):.3f}"
        right = sum(row.classes[0] == label for label, row in enumerate(result.before))
        return f"{right} of {len(result.before)} digits labelled right" if result.before else ""


def recipe(plugin: PluginInfo, model: ModelInfo) -> Recipe:
    """How to call a plugin; plugins without wording of their own get their defaults."""
    known: dict[str, Mapping[str, Any]] = {
        "pgd": {"epsilon": 0.15, "steps": 40},
        "fgsm": {"epsilon": 0.15},
        "code_inversion": {"layer": _code_layer(model)},
        "langevin": _LANGEVIN,
    }
    params = known.get(plugin.name, {})
    shown = ", ".join(f"{key} {_brief(value)}" for key, value in params.items())
    targeted = "class" in plugin.target_kinds
    return Recipe(
        kind=plugin.kind,
        text=f"{plugin.summary} ({shown or 'default parameters'})",
        params=params,
        inputs=plugin.inputs == "required" or not targeted,
        targeted=targeted,
        judged=plugin.name in ("class_visualization", "langevin"),
    )


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(str(item["plugin"]) for item in value)
    return str(value)


def _code_layer(model: ModelInfo) -> str:
    """The second convolution, whatever the file calls it."""
    convolutions = [layer.name for layer in model.layers if layer.kind.startswith("conv")]
    return convolutions[min(1, len(convolutions) - 1)]
