"""How the demonstration calls each plugin, and how it reads the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpret_client import ModelInfo, PluginInfo, Result

from .digits import Digits

INK = 0.3  # grey level above which a pixel belongs to the digit

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
    """Parameters and wording for one plugin.

    Args:
        kind: of the plugin.
        text: under the heading.
        params: others than the plugin's defaults.
        inputs: whether the plugin gets digits.
        targeted: whether every digit's label is its target.
        target: one for all digits, in place of their labels.
        everything: whether the plugin gets all held-out digits, not one of each class.
        judged: whether a second network says what the plugin's images show.
        masked: whether the plugin is told where the digits are.
        primary: the metric that sums the result up, where there is one.
    """

    kind: str
    text: str
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: bool = True
    targeted: bool = True
    target: Mapping[str, Any] | None = None
    everything: bool = False
    judged: bool = False
    masked: bool = False
    primary: str = ""

    def targets(self, labels: NDArray[np.int64]) -> Sequence[int] | Mapping[str, Any] | None:
        """The true label of each digit, or the one target of all, where the plugin takes one."""
        if self.target is not None:
            return self.target
        return [int(label) for label in labels] if self.targeted else None

    def tensors(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """What a plugin wants besides the digits: where their ink is, as the object's mask."""
        return {"mask": (images > INK).astype(np.float32)} if self.masked else {}

    def caption(self, result: Result, row: int, digits: Digits) -> str:
        """A line under one picture."""
        label = int(digits.labels[row])
        after = result.after[row] if result.after else None
        if self.kind == "attack" and after is not None:
            return f"{label} → {after.classes[0]} ({after.probabilities[0]:.0%})"
        if self.kind == "synthesis" and after is not None and self.targeted:
            rank = list(after.classes).index(label) if label in after.classes else None
            share = 0.0 if rank is None else after.probabilities[rank]
            return f"class {label}, p = {share:.3f}"
        if self.kind == "metric" and self.primary in result.metrics:
            return f"{label}: {result.metrics[self.primary][row]:.2f}"
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
        if self.primary in result.metrics:
            name = self.primary.replace("_", " ")
            return f"{name} {np.abs(result.metrics[self.primary]).mean():.3f} on average"
        if "best" in result.metrics:
            ranks = {
                name.removeprefix("mean_rank."): float(np.mean(values))
                for name, values in result.metrics.items()
                if name.startswith("mean_rank.")
            }
            return "mean ranks: " + ", ".join(f"{name} {rank:.1f}" for name, rank in ranks.items())
        return ""


def recipe(plugin: PluginInfo, model: ModelInfo) -> Recipe:
    """How to call a plugin; plugins without wording of their own get their defaults."""
    known: dict[str, Mapping[str, Any]] = {
        "pgd": {"epsilon": 0.15, "steps": 40},
        **{name: {"epsilon": 0.15} for name in ("fgsm", "bim", "mi_fgsm", "apgd")},
        **{name: {"epsilon": 0.15, "queries": 500} for name in ("square", "nes", "spsa")},
        "simba": {"epsilon": 1.5, "queries": 500},
        "auto_attack": {"epsilon": 0.15, "steps": 20, "queries": 200},
        "carlini_wagner": {"steps": 200, "rounds": 3, "initial_constant": 1},
        "ead": {"steps": 100, "rounds": 3, "initial_constant": 1},
        "boundary": {"queries": 1500},
        "hop_skip_jump": {"queries": 1500},
        "code_inversion": {"layer": _code_layer(model)},
        "langevin": _LANGEVIN,
        "code_embedding": {"method": "tsne"},
        "layer_activation": {"layers": [_code_layer(model)]},
        "layer_attribution": {"layer": _code_layer(model)},
        # Enough for 64 pixels; the defaults are for photographs.
        "guided_integrated_gradients": {"steps": 50},
        "lime": {"samples": 400},
        "kernel_shap": {"samples": 500},
        "shapley_sampling": {"permutations": 8},
        "rise": {"masks": 800, "cells": 4},
        "compare": {
            "methods": ["saliency", "integrated_gradients", "occlusion", "lrp"],
            "metrics": ["deletion", "insertion"],
        },
    }
    units: dict[str, Mapping[str, Any]] = {
        "filters": {"layer": _convolutions(model)[0]},
        "top_activating": {"layer": _code_layer(model), "channel": 5},
    }
    params = known.get(plugin.name, {})
    shown = ", ".join(f"{key} {_brief(value)}" for key, value in params.items())
    collection = plugin.rows == "collection"
    targeted = "class" in plugin.target_kinds and not collection
    return Recipe(
        kind=plugin.kind,
        text=f"{plugin.summary} ({shown or 'default parameters'})",
        params=params,
        inputs=plugin.inputs == "required" or (plugin.inputs == "optional" and not targeted),
        targeted=targeted,
        target=units.get(plugin.name),
        everything=collection,
        judged=plugin.name in ("class_visualization", "langevin"),
        masked="mask" in [tensor.name for tensor in plugin.tensors],
        primary=_primary(plugin),
    )


def _primary(plugin: PluginInfo) -> str:
    """The metric that says most about a result; none where a number would say little."""
    metrics = [field.name for field in plugin.results if field.role == "metric"]
    if plugin.kind == "metric":
        return "" if "best" in metrics else metrics[0]
    known = ("convergence_delta", "conservation_delta", "score", "trustworthiness")
    return next((name for name in known if name in metrics), "")


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(item if isinstance(item, str) else str(item["plugin"]) for item in value)
    return str(value)


def _code_layer(model: ModelInfo) -> str:
    """The second convolution, whatever the file calls it."""
    return _convolutions(model)[:2][-1]


def _convolutions(model: ModelInfo) -> list[str]:
    return [layer.name for layer in model.layers if layer.kind.startswith("conv")]
