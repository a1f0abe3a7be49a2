"""The pictures of docs/, made by the server from photographs that anybody may use.

    python examples/docs_pictures.py squeezenet1_1_rgb01.pt docs/pictures

The network is SqueezeNet 1.1 for ImageNet as TorchScript, which takes RGB in [0, 1]; the other
networks are trained here. The photographs come with scikit-image: the coffee cup (Rachel Michetti)
and Chelsea the cat (Stefan van der Walt) are CC0, the rocket (SpaceX) too, the astronaut (NASA) is
in the public domain. Takes several minutes on a CPU.
"""

import argparse
import io
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import small_networks
from numpy.typing import NDArray
from PIL import Image

from interpret_client import Client, connect, pictures
from interpret_server.testing import serve

ESPRESSO, CAT = 967, 285
SIDE = 176  # pixels of a picture in a table
LAYER = "net.features.10"
SUPERPIXELS = {"features": "superpixels", "segments": 50}

# Fewer passes than the defaults: enough for a picture.
PARAMS: dict[str, dict[str, Any]] = {
    "feature_ablation": SUPERPIXELS,
    "lime": {**SUPERPIXELS, "segments": 25, "samples": 150},
    "kernel_shap": {**SUPERPIXELS, "segments": 25, "samples": 150},
    "shapley_sampling": {**SUPERPIXELS, "segments": 25, "permutations": 4},
    "rise": {"masks": 250},
    "occlusion": {"window": 56, "stride": 28},
    "guided_integrated_gradients": {"steps": 60},
    "neuron_attribution": {"layer": LAYER},
}
NOT_HERE = ("attention_rollout", "transformer_lrp", "layer_attribution")
STYLES = ["heatmap", "signed", "overlay", "top_k", "object_mask"]
ON_THE_PHOTO = ("occlusion", "feature_ablation", "lime", "kernel_shap", "shapley_sampling", "rise")


def photograph(name: str, box: tuple[int, int, int], side: int = 224) -> NDArray[np.float32]:
    """A square of a photograph of scikit-image as `(3, side, side)` in [0, 1].

    Args:
        name: of the photograph.
        box: left, top and length.
    """
    import skimage.data

    left, top, length = box
    whole = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    part = whole.crop((left, top, left + length, top + length))
    pixels = np.asarray(part.resize((side, side), Image.Resampling.LANCZOS), np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) / 255


def windows() -> NDArray[np.float32]:
    """Squares of four photographs, `(N, 3, 224, 224)`."""
    sizes = {"coffee": (600, 400), "chelsea": (451, 300), "rocket": (640, 427)}
    sizes["astronaut"] = (512, 512)
    boxes = [
        (name, (left, top, length))
        for name, (width, height) in sizes.items()
        for length in (120, 200, 290)
        for top in range(0, height - length + 1, max(1, (height - length) // 2))
        for left in range(0, width - length + 1, max(1, (width - length) // 4))
    ]
    return np.stack([photograph(name, box) for name, box in boxes])


@dataclass
class Studio:
    """Where pictures are made.

    Args:
        client: of the server.
        folder: where files go.
        only: names of files to make; none for all.
    """

    client: Client
    folder: Path
    only: frozenset[str]

    def wants(self, *names: str) -> bool:
        """Whether any of the files is to be made."""
        return not self.only or not self.only.isdisjoint(names)

    def keep(self, name: str, picture: Any, side: int | None = None) -> None:
        """Write a picture as `name`, no wider or higher than `side`, and say how large it is."""
        if not self.wants(name):
            return
        image = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
        image = image.convert("RGB")
        if side is not None and max(image.size) > side:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
        path = self.folder / name
        if path.suffix == ".png":
            image.quantize(128).save(path, optimize=True)
        else:
            image.save(path, quality=85, optimize=True)
        print(f"{path} {image.width} x {image.height}, {path.stat().st_size / 1024:.0f} KB")

    def run(self, plugin: str, model: str, inputs: Any, **options: Any) -> Any:
        """A plugin's result, with a fixed seed."""
        return self.client.run(plugin, model, inputs, seed=0, **options)


def attributions(studio: Studio, cup: NDArray[np.float32]) -> None:
    """One picture of every method on the photograph, and all of them on a sheet."""
    cells = {"input": pictures.image(cup[0], (0, 1))}
    names = [plugin.name for plugin in studio.client.plugins("attribution")]
    for name in names:
        if name in NOT_HERE:
            continue
        if not studio.wants(f"{name}.jpg", "attribution.jpg"):
            continue
        result = studio.run(name, "squeezenet", cup, target=ESPRESSO, params=PARAMS.get(name, {}))
        over = name in ON_THE_PHOTO or ("map" in result.tensors and name != "guided_grad_cam")
        style = {"style": "overlay" if over else "auto"}
        cells[name] = result.picture(style, inputs=cup, bounds=(0, 1))
        if name == "rise":  # its level is that of the score
            values = result.tensors["attributions"][0]
            cells[name] = pictures.overlay(values - values.min(), cup[0], bounds=(0, 1))
        studio.keep(f"{name}.jpg", cells[name], SIDE)
        print(name, *(f"{key} {value[0]:.3g}" for key, value in result.metrics.items()))
    studio.keep("attribution.jpg", pictures.sheet(cells, columns=6, side=SIDE))


def styles(studio: Studio, cup: NDArray[np.float32]) -> None:
    """One attribution in every style, and the superpixels that features can be."""
    if studio.wants("styles.jpg"):
        found = studio.run(
            "smoothgrad", "squeezenet", cup, target=ESPRESSO, render={"styles": STYLES}
        )
        cells = {
            style: found.pictures[f"attributions.{style}"][0]
            for style in [*STYLES, "object_cutout"]
        }
        studio.keep("styles.jpg", pictures.sheet(cells, columns=6, side=SIDE))
    if studio.wants("features.jpg"):
        cells = {}
        for kind, params in (("grid", {}), ("superpixels", SUPERPIXELS)):
            found = studio.run(
                "feature_ablation", "squeezenet", cup, target=ESPRESSO, params=params
            )
            numbers = found.tensors["features"][0][0]
            edges = (np.diff(numbers, axis=0, append=-1) != 0) | (
                np.diff(numbers, axis=1, append=-1) != 0
            )
            cells[f"features: {kind}"] = pictures.image(np.where(edges, 1, cup[0]), (0, 1))
            cells[f"feature_ablation: {kind}"] = found.picture("overlay", inputs=cup, bounds=(0, 1))
        studio.keep("features.jpg", pictures.sheet(cells, side=SIDE))


def transformers(studio: Studio, trained: small_networks.Trained) -> None:
    """What a vision transformer reads, on two digits among clutter."""
    if not studio.wants("transformers.png", "attention_rollout.png", "transformer_lrp.png"):
        return
    other = int(np.flatnonzero(trained.labels != trained.labels[0])[0])
    rows = trained.inputs[[0, other]]
    labels = [int(label) for label in trained.labels[[0, other]]]
    methods: list[tuple[str, str, dict[str, Any]]] = [
        ("rollout", "attention_rollout", {}),
        ("gradient", "attention_rollout", {"method": "gradient"}),
        ("transformer_lrp", "transformer_lrp", {}),
        ("integrated_gradients", "integrated_gradients", {}),
    ]
    lines = [
        {f"a {label}": pictures.image(row, (0, 1))} for row, label in zip(rows, labels, strict=True)
    ]
    for title, plugin, params in methods:
        result = studio.run(plugin, "vit", rows, target=labels, params=params)
        for row, line in enumerate(lines):
            line[title] = result.picture("auto", row=row, inputs=rows, bounds=(0, 1))
        if title in ("gradient", "transformer_lrp"):
            studio.keep(f"{plugin}.png", lines[0][title], SIDE)
    studio.keep("transformers.png", pictures.sheet(lines, side=SIDE))


def sequences(
    studio: Studio, sentences: small_networks.Trained, table: small_networks.Trained
) -> None:
    """Words of a sentence, and columns of a table."""
    if studio.wants("tokens.png"):
        cells = {}
        for row, words in enumerate(sentences.names):
            label = int(sentences.labels[row])
            result = studio.run(
                "integrated_gradients", "reader", sentences.inputs[row : row + 1], target=label
            )
            values = result.tensors["token_attributions"][0]
            cells[f"for {sentences.manifest['labels'][label]}"] = pictures.bars(values, words)
        studio.keep("tokens.png", pictures.sheet(cells, side=480))
    if studio.wants("table.png"):
        row, label = table.inputs[:1], int(table.labels[0])
        result = studio.run(
            "shapley_sampling", "wines", row, target=label, params={"features": "values"}
        )
        studio.keep("table.png", result.picture(names=table.manifest["features"]))


def internals(studio: Studio, cup: NDArray[np.float32], digits: small_networks.Trained) -> None:
    """Layers, units, weights, and codes of a data set."""
    if studio.wants("layer_attribution.jpg"):
        maps = {}
        for method in ("activation_x_gradient", "integrated_gradients", "conductance"):
            result = studio.run(
                "layer_attribution",
                "squeezenet",
                cup,
                target=ESPRESSO,
                params={"layer": LAYER, "method": method},
            )
            values = np.asarray(result.tensors["attributions"])[:, :, :, :].sum(1, keepdims=True)
            maps[method] = pictures.signed(values[0])
        studio.keep("layer_attribution.jpg", pictures.sheet(maps, side=SIDE))
    if studio.wants("layer_activation.jpg"):
        result = studio.run(
            "layer_activation", "squeezenet", cup, params={"layers": ["net.features.3"]}
        )
        values = result.tensors["activations.net.features.3"][0]
        studio.keep("layer_activation.jpg", pictures.grid(values[:32], columns=8), 700)
    if studio.wants("filters.png"):
        result = studio.client.run("filters", "squeezenet", target={"layer": "net.features.0"})
        weights = result.tensors["filters"][0]
        studio.keep("filters.png", pictures.grid(np.moveaxis(weights, 1, -1), columns=16), 700)
    if studio.wants("top_activating.jpg"):
        lines, titles = [], []
        for channel in (11, 60, 140):
            result = studio.run(
                "top_activating",
                "squeezenet",
                windows(),
                target={"layer": LAYER, "channel": channel},
                params={"k": 6},
                render=True,
            )
            titles.append(f"channel {channel}")
            print({name: len(files) for name, files in result.pictures.items()})
            lines.append({str(n + 1): png for n, png in enumerate(result.pictures["crops"])})
        studio.keep("top_activating.jpg", pictures.sheet(lines, side=112, titles=titles))
    if studio.wants("code_embedding.png"):
        result = studio.run(
            "code_embedding", "digits", digits.inputs, params={"method": "tsne"}, render=True
        )
        print(result.metrics["trustworthiness"].mean())
        studio.keep("code_embedding.png", result.pictures["positions"][0], 560)
        studio.keep("code_embedding_inputs.png", result.pictures["positions.inputs"][0], 560)


def metrics(studio: Studio, cup: NDArray[np.float32], cat: NDArray[np.float32]) -> None:
    """Every metric on a few methods."""
    methods = {
        "saliency": {"absolute": False},
        "input_x_gradient": {},
        "integrated_gradients": {"steps": 20},
        "grad_cam": {},
    }
    named = {name: {"plugin": name, "params": params} for name, params in methods.items()}

    def judged(metric: str, names: Iterable[str] = methods, **options: Any) -> dict[str, Any]:
        params = options.pop("params", {})
        inputs = options.pop("inputs", cup)
        return {
            name: studio.run(
                metric,
                "squeezenet",
                inputs,
                target=ESPRESSO,
                params={**params, "method": named[name]},
                **options,
            )
            for name in names
        }

    curves: dict[str, Callable[[Any], Any]] = {
        "deletion": lambda found: found.tensors["curve"],
        "insertion": lambda found: found.tensors["curve"],
        "road": lambda found: np.concatenate(
            [found.tensors["morf_curve"], found.tensors["lerf_curve"]]
        ),
    }
    for metric, curve in curves.items():
        if studio.wants(f"{metric}.png"):
            cells = {}
            for name, found in judged(metric, ("saliency", "grad_cam")).items():
                number = found.metrics["gap" if metric == "road" else "area"][0]
                cells[f"{name}: {number:.2f}"] = pictures.plot(curve(found), (0, 1))
            studio.keep(f"{metric}.png", pictures.sheet(cells, side=340))
    for metric, names, params in (
        ("infidelity", ("input_x_gradient", "integrated_gradients"), {"attribution": "share"}),
        ("max_sensitivity", tuple(methods), {"samples": 4}),
    ):
        if studio.wants(f"{metric}.png"):
            found = judged(metric, names, params=params)
            values = np.array([result.metrics[metric][0] for result in found.values()])
            studio.keep(f"{metric}.png", pictures.bars(values, list(found)))
    pair = np.concatenate([cat[:, :, :, 56:168], cup[:, :, :, 56:168]], axis=3)
    mask = np.zeros((1, 224, 224), np.float32)
    mask[..., 112:] = 1
    for metric, number in (("localisation", "energy"), ("pointing_game", "hit")):
        if studio.wants(f"{metric}.jpg"):
            cells = {
                "input": pictures.image(pair[0], (0, 1)),
                "mask": pictures.image(mask, (0, 1)),
            }
            found = judged(metric, inputs=pair, tensors={"mask": mask})
            for name, result in found.items():
                title = f"{name}: {result.metrics[number][0]:.2g}"
                cells[title] = result.picture("overlay", inputs=pair, bounds=(0, 1))
            studio.keep(f"{metric}.jpg", pictures.sheet(cells, columns=6, side=SIDE))
    if studio.wants("randomisation.jpg"):
        lines = []
        layers = ["net.classifier.1", "net.features.12.expand3x3", "net.features.0"]
        for name in ("saliency", "guided_backprop"):
            found = studio.run(
                "randomisation",
                "squeezenet",
                cup,
                target=ESPRESSO,
                params={
                    "method": name,
                    "maps": True,
                    "layers": layers,
                },
            )
            line = {f"{name}, trained": found.picture("heatmap")}
            for layer in layers:
                rank = found.tensors[f"spearman.{layer}"][0]
                title = f"{layer.removeprefix('net.')}: {rank:.2f}"
                line[title] = found.picture("heatmap", name=f"randomised.{layer}")
            lines.append(line)
        studio.keep("randomisation.jpg", pictures.sheet(lines, side=SIDE))
    if studio.wants("compare.jpg"):
        found = studio.run(
            "compare",
            "squeezenet",
            cup,
            target=ESPRESSO,
            params={
                "methods": list(named.values()),
                "metrics": [{"plugin": "deletion"}, {"plugin": "insertion"}],
            },
            render={"style": "overlay"},
        )
        print({name: float(value[0]) for name, value in found.metrics.items()})
        studio.keep("compare.jpg", found.pictures["comparison"][0], 900)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("squeezenet", type=Path, help="TorchScript, RGB in [0, 1]")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="names of files to make")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    cup = photograph("coffee", (60, 0, 400))[None]
    cat = photograph("chelsea", (120, 0, 300))[None]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = {name: train(folder) for name, train in small_networks.ALL.items()}
        models: dict[str, Any] = {
            name: (made.path, made.manifest) for name, made in trained.items()
        }
        models["squeezenet"] = (arguments.squeezenet, {"shape": [3, 224, 224], "bounds": [0, 1]})
        with serve(models=models) as address, connect(address) as client:
            studio = Studio(client, arguments.folder, frozenset(arguments.only))
            attributions(studio, cup)
            styles(studio, cup)
            transformers(studio, trained["vit"])
            sequences(studio, trained["reader"], trained["wines"])
            internals(studio, cup, trained["digits"])
            metrics(studio, cup, cat)


if __name__ == "__main__":
    main()
