"""A page with pictures by every synthesis method, each under the call that made it.

    python examples/synthesis_gallery.py squeezenet1_1_rgb01.pt gallery-output

The network is SqueezeNet 1.1 for ImageNet as TorchScript, which takes RGB in [0, 1]; a network of
handwritten digits and a denoiser of them are trained here. The photographs come with scikit-image
and are CC0: Chelsea the cat (Stefan van der Walt), the coffee cup (Rachel Michetti) and gravel
(CC0Textures). With `--pictures FOLDER` a strip of each method is written there, for docs/. Takes
some minutes on a CPU.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import small_networks
from docs_pictures import photograph
from numpy.typing import NDArray
from PIL import Image

from interpret_client import Client, Result, connect, pictures
from interpret_server.demo.gallery import Cell, Gallery, Section
from interpret_server.testing import serve

Picture = NDArray[np.float32]

CLASSES = {
    130: "flamingo",
    323: "monarch",
    437: "lighthouse",
    949: "strawberry",
    980: "volcano",
    779: "school bus",
}
EGYPTIAN_CAT, TEAPOT = 285, 849
SIDE = 224
STRIP = 720  # pixels, of a strip of pictures
DIGITS = list(range(10))
DENOISER = {"prior": "denoiser"}
SAMPLER = {
    "equation": "three_term",
    "steps": 300,
    "epsilon1": 2e-3,
    "epsilon2": 5e-2,
    "epsilon3": 3e-4,
}


@dataclass(frozen=True)
class Named:
    """Inputs with the name that a call shows for them."""

    name: str
    values: Any


@dataclass
class Studio:
    """Where pictures are made.

    Args:
        client: of the server.
        page: that sections go to.
        strips: of each plugin, named pictures for docs/.
    """

    client: Client
    page: Gallery
    strips: dict[str, dict[str, Image.Image]] = field(default_factory=dict)

    def run(
        self,
        plugin: str,
        model: str = "squeezenet",
        inputs: Named | None = None,
        tensors: Mapping[str, Named] | None = None,
        models: Mapping[str, str] | None = None,
        **options: Any,
    ) -> tuple[str, Result]:
        """The call as text, and its result with a fixed seed."""
        shown = [repr(plugin), repr(model)] + ([inputs.name] if inputs else [])
        shown += [f"{name}={_short(value)}" for name, value in options.items()]
        if tensors:
            inside = ", ".join(f"{name!r}: {item.name}" for name, item in tensors.items())
            shown.append(f"tensors={{{inside}}}")
        if models:
            shown.append(f"models={dict(models)}")
        started = time.perf_counter()
        result = self.client.run(
            plugin,
            model,
            None if inputs is None else inputs.values,
            tensors={name: item.values for name, item in (tensors or {}).items()},
            models=dict(models or {}),
            seed=0,
            **options,
        )
        seconds = time.perf_counter() - started
        text = f"client.run({', '.join(shown)})  # {seconds:.1f} s"
        print(text)
        for warning in result.warnings:
            print("  warning:", warning.message, warning.rows)
        return text, result

    def section(
        self, title: str, text: str, lines: Mapping[str, Sequence[Cell]], *, large: bool = True
    ) -> None:
        """Add a section."""
        kept = {name: list(cells) for name, cells in lines.items()}
        self.page.add(Section(title, text, kept, large))

    def keep(self, plugin: str, rows: Iterable[Picture], names: Iterable[str]) -> None:
        """Keep pictures for docs/."""
        made = {name: picture(row) for row, name in zip(rows, names, strict=True)}
        self.strips.setdefault(plugin, {}).update(made)

    def write(self, folder: Path) -> None:
        """Write the strips."""
        folder.mkdir(parents=True, exist_ok=True)
        for plugin, strip in self.strips.items():
            path = folder / f"{plugin}.jpg"
            side = STRIP // len(strip)
            pictures.sheet(strip, side=side).save(path, quality=78, optimize=True)
            print(f"{path}: {path.stat().st_size / 1024:.0f} KB")


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_short(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple) and len(value) > 12:
        return f"[{len(value)} values]"
    return repr(value)


def picture(row: Picture) -> Image.Image:
    """A row in [0, 1], small ones enlarged."""
    image: Image.Image = pictures.image(row, (0, 1))
    if image.width >= SIDE // 2:
        return image
    return image.resize((SIDE // 2, SIDE // 2), Image.Resampling.NEAREST)


def cells(rows: Iterable[Picture], captions: Iterable[str], call: str = "") -> list[Cell]:
    """Pictures with lines under them, and with the call that made each."""
    return [
        Cell(pictures.png(picture(row)), caption, call)
        for row, caption in zip(rows, captions, strict=True)
    ]


def probability(result: Result, row: int, label: int) -> float:
    """Of a class at the images that a plugin made; 0 where it is not among the first five."""
    after = result.after[row]
    return dict(zip(after.classes, after.probabilities, strict=True)).get(label, 0.0)


def class_images(studio: Studio) -> None:
    """The default preset, and plain ascent."""
    call, result = studio.run("class_visualization", target=list(CLASSES))
    made = result.tensors["images"]
    studio.keep("class_visualization", made, CLASSES.values())
    other, result = studio.run(
        "class_visualization", target=[130, 323], params={"preset": "simonyan"}
    )
    plain = cells(result.tensors["images"], [CLASSES[130], CLASSES[323]], other)
    text = "What the network takes for a class."
    lines = {call: cells(made, CLASSES.values()), "plain ascent, as in 2013": plain}
    studio.section("class_visualization", text, lines)


def units(studio: Studio, cat: Named) -> None:
    """Channels, a neuron, a layer, a direction, a difference; variants of one channel."""
    late, steps = "net.features.10", {"steps": 100}
    channel = {"layer": late, "channel": 11}
    code = studio.client.activations("squeezenet", cat.values, [late])[late][0]
    direction = [float(value) for value in code.mean((1, 2))]
    other = {"layer": late, "channel": 140, "weight": -1.0}
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("early channel", {"layer": "net.features.4.expand3x3", "channel": 20}, {}),
        ("late channel", channel, {}),
        ("one neuron", {"layer": "net.features.10.expand1x1", "neuron": [60, 6, 6]}, {}),
        ("whole layer", {"layer": "net.features.7"}, {}),
        ("direction", {"layer": late, "direction": direction}, {}),
        ("difference", channel, {"terms": [other]}),
        ("class", EGYPTIAN_CAT, {}),
    ]
    shown = []
    for name, target, params in cases:
        call, result = studio.run(
            "activation_maximization", target=target, params={**steps, **params}
        )
        shown += cells(result.tensors["images"], [name], call)
        studio.keep("activation_maximization", result.tensors["images"], [name])
    call, result = studio.run(
        "activation_maximization", target=channel, params={**steps, "variants": 4}
    )
    variants = result.tensors["variants"][0]
    lines = {"units": shown, call: cells(variants, [f"variant {n}" for n in range(1, 5)])}
    text = (
        "What units respond to most: channels, a neuron, a layer, the direction of the cat's code, "
        "one channel less another, the class Egyptian cat; four variants of one channel."
    )
    studio.section("activation_maximization", text, lines)


def dreams(studio: Studio, cat: Named, cup: Named) -> None:
    """Layers of several depths, the mean, and a guide."""
    both = ["net.features.6", "net.features.10"]
    shown = cells([cat.values[0], cup.values[0]], ["the input", "the guide"])
    cases: list[tuple[str, dict[str, Any]]] = [
        ("early layer", {"params": {"layers": ["net.features.4"]}}),
        ("default layer", {}),
        ("late layer", {"params": {"layers": ["net.features.12"]}}),
        ("mean of two", {"params": {"layers": both, "objective": "mean"}}),
        ("guided", {"tensors": {"guide": cup}}),
    ]
    for name, options in cases:
        call, result = studio.run("deep_dream", inputs=cat, **options)
        shown += cells(result.tensors["images"], [name], call)
        studio.keep("deep_dream", result.tensors["images"], [name])
    text = "A photograph in which layers see more of what they see."
    studio.section("deep_dream", text, {"four octaves": shown})


def inversions(studio: Studio, cat: Named) -> None:
    """The code of a photograph at several layers."""
    shown = cells(cat.values, ["the input"])
    for layer in ("net.features.0", "net.features.4", "net.features.7", "net.features.12", None):
        call, result = studio.run("code_inversion", inputs=cat, params={"layer": layer})
        error = result.metrics["reconstruction_error"][0]
        name = "the logits" if layer is None else layer.removeprefix("net.")
        shown += cells(result.tensors["images"], [f"{name}: error {error:.3f}"], call)
        studio.keep("code_inversion", result.tensors["images"], [name])
    text = "What a layer still knows of a photograph."
    studio.section("code_inversion", text, {"from early to late": shown})


def styles(studio: Studio, cat: Named, cup: Named, gravel: Named) -> None:
    """One style, three ways with colours, and two styles at once."""
    given = (cat, cup, gravel)
    shown = cells([item.values[0] for item in given], [item.name for item in given])
    both = Named("np.stack([cup, gravel], 1)", np.stack([cup.values, gravel.values], 1))
    strong = {"style_weight": 1000.0, "steps": 80}
    cases: list[tuple[str, Named, dict[str, Any]]] = [
        ("gravel", gravel, {}),
        ("own colours", gravel, {"colours": "luminance"}),
        ("matched", cup, {"colours": "matched"}),
        ("two styles", both, {"style_weights": [1, 2]}),
    ]
    for name, style, params in cases:
        call, result = studio.run(
            "style_transfer", inputs=cat, tensors={"style": style}, params={**strong, **params}
        )
        shown += cells(result.tensors["images"], [name], call)
        studio.keep("style_transfer", result.tensors["images"], [name])
    text = "The cat in the textures of gravel and of the cup, in their colours or in its own."
    studio.section("style_transfer", text, {"content, styles and results": shown})


def fooling(studio: Studio, cat: Named) -> None:
    """From nothing, from noise, and as a distortion of a photograph."""
    shown = []
    cases: list[tuple[str, Named | None, dict[str, Any]]] = [
        ("from grey", None, {}),
        ("from noise", None, {"start": "noise"}),
        ("distortion", cat, {"form": "distortion", "l2": 0.01}),
        ("added", cat, {"form": "added"}),
    ]
    for name, inputs, params in cases:
        call, result = studio.run("fooling_image", inputs=inputs, target=TEAPOT, params=params)
        chance, steps = result.metrics["probability"][0], result.metrics["steps_taken"][0]
        caption = f"{name}: teapot with p = {chance:.4f} after {steps:.0f} steps"
        shown += cells(result.tensors["images"], [caption], call)
        studio.keep("fooling_image", result.tensors["images"], [name])
    text = (
        "Nothing to see, or only a cat, and the network is certain that it is a teapot. What was "
        "made without the cat does not fool when it is added to it."
    )
    studio.section("fooling_image", text, {"towards the class teapot": shown})


def samples(studio: Studio) -> None:
    """Digits by simple priors and by a denoiser."""
    lines, denoise = {}, {"plugin": "score_model", "params": {"sigma": 0.3}}
    simple = [
        {"plugin": "gaussian", "params": {"std": 0.35}},
        {"plugin": "total_variation", "params": {"weight": 0.5}},
    ]
    priors: list[tuple[list[Any], dict[str, str]]] = [(simple, {}), ([denoise], DENOISER)]
    for prior, models in priors:
        params = {**SAMPLER, "priors": prior}
        call, result = studio.run("langevin", "digits", target=DIGITS, params=params, models=models)
        made = np.clip(result.tensors["images"], 0, 1)
        captions = [f"{digit}: p = {probability(result, digit, digit):.3f}" for digit in DIGITS]
        lines[call] = cells(made, captions)
        if models:
            studio.keep("langevin", made, map(str, DIGITS))
    text = "Samples of each class: under a prior of pixels, and under a denoiser that was learnt."
    studio.section("langevin", text, lines, large=False)


def completions(studio: Studio, cat: Named, digits: Named) -> None:
    """Half a digit, and a hole in a photograph."""
    half = np.zeros_like(digits.values)
    half[:, :, 4:] = 1
    priors = [{"plugin": "score_model", "params": {"sigma": 0.3}}]
    call, result = studio.run(
        "inpaint",
        "digits",
        digits,
        {"mask": Named("lower_half", half)},
        DENOISER,
        target=DIGITS,
        params={"priors": priors},
    )
    made = np.clip(result.tensors["images"], 0, 1)
    lines = {
        "the lower halves are hidden": cells(_hidden(digits.values, half), map(str, DIGITS)),
        call: cells(made, map(str, DIGITS)),
    }
    studio.keep("inpaint", made, map(str, DIGITS))
    text = "A hidden region filled in, under a class and a prior; what is known stays to the bit."
    studio.section("inpaint", text, lines, large=False)
    hole = np.zeros_like(cat.values)
    hole[:, :, 60:125, 140:205] = 1
    shown = cells(_hidden(cat.values, hole), ["the input"])
    cases: list[tuple[str, dict[str, Any]]] = [
        ("under the prior alone", {}),
        ("as an Egyptian cat", {"target": EGYPTIAN_CAT}),
    ]
    for name, options in cases:
        call, result = studio.run(
            "inpaint",
            inputs=cat,
            tensors={"mask": Named("hole", hole)},
            params={"method": "gradient", "condition_weight": 5000.0, "steps": 100},
            **options,
        )
        shown += cells(result.tensors["images"], [name], call)
    text = "The same for a photograph, where a smooth prior knows no eyes."
    studio.section("inpaint with SqueezeNet", text, {"an eye is hidden": shown})


def _hidden(values: Picture, mask: Picture) -> Picture:
    return np.where(mask == 1, np.float32(0.5), values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("squeezenet", type=Path, help="TorchScript, RGB in [0, 1]")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=Path, help="where small pictures for docs/ go")
    parser.add_argument("--only", nargs="*", default=[], help="plugins to show")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    cat = Named("cat", photograph("chelsea", (120, 0, 300))[None])
    cup = Named("cup", photograph("coffee", (60, 0, 400))[None])
    gravel = Named("gravel", photograph("gravel", (0, 0, 300))[None])
    with tempfile.TemporaryDirectory() as name:
        trained = small_networks.digits(Path(name))
        denoiser = small_networks.denoiser(Path(name))
        rows = [int(np.flatnonzero(trained.labels == digit)[0]) for digit in DIGITS]
        digits = Named("digits", trained.inputs[rows])
        models = {
            "squeezenet": (arguments.squeezenet, {"shape": [3, SIDE, SIDE], "bounds": [0, 1]}),
            "digits": (trained.path, trained.manifest),
            "denoiser": (denoiser.path, denoiser.manifest),
        }
        with serve(models=models) as address, connect(address) as client:
            studio = Studio(client, Gallery("Synthesis"))
            sections = {
                "class_visualization": lambda: class_images(studio),
                "activation_maximization": lambda: units(studio, cat),
                "deep_dream": lambda: dreams(studio, cat, cup),
                "code_inversion": lambda: inversions(studio, cat),
                "style_transfer": lambda: styles(studio, cat, cup, gravel),
                "fooling_image": lambda: fooling(studio, cat),
                "langevin": lambda: samples(studio),
                "inpaint": lambda: completions(studio, cat, digits),
            }
            for plugin, make in sections.items():
                if not arguments.only or plugin in arguments.only:
                    make()
            if arguments.pictures is not None:
                studio.write(arguments.pictures)
    path = arguments.folder / "index.html"
    path.write_text(studio.page.html(), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
