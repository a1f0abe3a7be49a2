"""Warnings about gradients that hide a way to success, on files of networks made to hide it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interpret_plugins.attacks.apgd import APGD
from interpret_plugins.attacks.attack import AttackResult
from interpret_plugins.attacks.auto_attack import AutoAttack
from interpret_plugins.attacks.fab import FAB
from interpret_plugins.attacks.fgsm import FGSM
from interpret_plugins.attacks.masking import (
    FLAT,
    MISLEADING,
    PHRASES,
    RANDOM,
    SATURATED,
    SHATTERED,
)
from interpret_plugins.attacks.pgd import PGD
from interpret_plugins.attacks.square import Square
from interpret_server.audits import phrases
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest, Precision
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Plugin
from interpret_server.testing import classifier
from tests.plugins.attacks.test_contract import Recorder
from tests.plugins.attacks.test_real_classifiers import batch, digits, lenet

SIZE, ROWS = 12, 6
SAVERS = ("scripted", "exported", "onnx")


class Plain(nn.Module):
    """Four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(SIZE, 20), nn.Linear(20, 4)
        source = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.last(self.first(x).relu())
        return hidden


class Quantised(Plain):
    """Sees sixteen levels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 15).round() / 15)


class Stochastic(Plain):
    """Adds noise to what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.05 * torch.randn_like(x))


class Saturated(Plain):
    """Gives probabilities, which hide how sure it is."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(1000 * super().forward(x), 1) * 1.0


class Sure(Plain):
    """Gives probabilities that can be traced back to logits."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(1000 * super().forward(x), 1)


class Detached(Plain):
    """Most of what it does has no gradient, and the rest leads elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach()) + 0.5 * x[:, :4]


class HalfBlind(Plain):
    """Half of the input has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x[:, :6].detach(), x[:, 6:]], 1))


class Cut(Plain):
    """Nothing of what it does has a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach()) + 0 * x[:, :4]


def inputs() -> Tensor:
    return torch.rand(ROWS, SIZE, generator=torch.Generator().manual_seed(5))


def loaded(module: nn.Module, saver: str, folder: Path) -> Classifier:
    path = folder / {"scripted": "net.pt", "exported": "net.pt2", "onnx": "net.onnx"}[saver]
    module, x = module.eval(), inputs()[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that its exporters are deprecated
        if saver == "scripted":
            torch.jit.trace(module, (x,), check_trace=False).save(str(path))
        elif saver == "exported":
            sizes = ({0: torch.export.Dim("n", min=1, max=512)},)
            torch.export.save(torch.export.export(module, (x,), dynamic_shapes=sizes), path)
        else:
            axes = {"x": {0: "n"}, "y": {0: "n"}}
            torch.onnx.export(
                module, (x,), str(path), dynamo=False, input_names=["x"], output_names=["y"],
                dynamic_axes=axes,
            )  # fmt: skip
        manifest = Manifest.model_validate({"shape": (SIZE,), "bounds": (0, 1)})
        return load_classifier("net", path, manifest, device=torch.device("cpu")).classifier


def attacked(
    model: Classifier,
    plugin: type[Plugin[Any, AttackResult]] = PGD,
    x: Tensor | None = None,
    **params: Any,
) -> tuple[AttackResult, dict[str, list[int]]]:
    """The result, and the rows of each warning by its phrase."""
    x = inputs() if x is None else x
    with torch.no_grad():
        labels = model(x).argsort(1)[:, 0 if params.get("targeted") else -1]
    job = Recorder()
    made = plugin.params_type.model_validate({"epsilon": 0.08, **params})
    data = Batch(x, Targets.classes(labels), tuple(range(len(x))))
    result = plugin().run(model, data, made, job)
    told = {}
    for rows, message in job.warnings:
        (phrase,) = [phrase for phrase in PHRASES if message.startswith(phrase)]
        assert phrase not in told
        told[phrase] = rows
    return result, told


def failed(result: AttackResult) -> list[int]:
    return torch.nonzero(~result.success).flatten().tolist()


@pytest.mark.parametrize("saver", SAVERS)
def test_rounded_inputs_have_no_gradient_and_yet_an_influence(saver: str, tmp_path: Path) -> None:
    result, told = attacked(loaded(Quantised(), saver, tmp_path))
    assert told == {SHATTERED: failed(result)}
    assert len(failed(result)) > 1
    assert all(message.startswith(phrases.ZERO_GRADIENT) for message in (FLAT, SHATTERED))


@pytest.mark.parametrize("saver", ["scripted", "exported"])
def test_answers_at_random_make_success_a_draw(saver: str, tmp_path: Path) -> None:
    model = loaded(Stochastic(), saver, tmp_path)
    for plugin in (PGD, FGSM, Square):
        _, told = attacked(model, plugin, **({"queries": 30} if plugin is Square else {}))
        assert told == {RANDOM: list(range(ROWS))}


@pytest.mark.parametrize("saver", SAVERS)
def test_probabilities_that_round_are_told(saver: str, tmp_path: Path) -> None:
    result, told = attacked(loaded(Saturated(), saver, tmp_path))
    assert len(told[SATURATED]) == ROWS
    assert set(told) <= {SATURATED, SHATTERED, FLAT}
    assert failed(result)
    result, told = attacked(loaded(Sure(), saver, tmp_path))
    assert told == {SATURATED: list(range(ROWS))}


@pytest.mark.parametrize("saver", ["scripted", "exported"])
@pytest.mark.parametrize(
    ("plugin", "params"),
    [
        (PGD, {}),
        (FGSM, {}),
        (APGD, {"steps": 20}),
        (FAB, {"steps": 5}),
        (AutoAttack, {"steps": 5, "queries": 5}),
    ],
)
def test_a_branch_without_a_gradient_is_missed(
    saver: str, plugin: type[Plugin[Any, AttackResult]], params: dict[str, Any], tmp_path: Path
) -> None:
    result, told = attacked(loaded(Detached(), saver, tmp_path), plugin, **params)
    assert told == {MISLEADING: failed(result)}
    assert failed(result)


def test_inputs_without_a_gradient_are_missed(tmp_path: Path) -> None:
    result, told = attacked(loaded(HalfBlind(), "scripted", tmp_path))
    assert set(told[MISLEADING]) <= set(failed(result))
    assert len(told[MISLEADING]) >= ROWS // 2


def test_onnx_knows_no_detached_branches(tmp_path: Path) -> None:
    result, told = attacked(loaded(Detached(), "onnx", tmp_path), epsilon=0.01)
    assert failed(result)
    assert not told


def test_a_network_cut_off_from_its_input_has_no_gradient(tmp_path: Path) -> None:
    result, told = attacked(loaded(Cut(), "scripted", tmp_path))
    assert told == {SHATTERED: failed(result)}
    assert failed(result)


ORDINARY: list[tuple[type[Plugin[Any, AttackResult]], dict[str, Any]]] = [
    (PGD, {}),
    (PGD, {"norm": "l2"}),
    (PGD, {"norm": "l0", "epsilon": 1}),
    (PGD, {"targeted": True}),
    (FGSM, {"loss": "dlr"}),
    (APGD, {"loss": "margin", "target_classes": 2}),
    (FAB, {"steps": 5}),
    (AutoAttack, {"steps": 5, "queries": 5}),
]


@pytest.mark.parametrize(("plugin", "params"), ORDINARY)
def test_an_ordinary_network_is_not_blamed(
    plugin: type[Plugin[Any, AttackResult]], params: dict[str, Any]
) -> None:
    model = classifier(Plain(), (SIZE,))
    x = torch.rand(24, SIZE, generator=torch.Generator().manual_seed(6))
    result, told = attacked(model, plugin, x, **({"epsilon": 0.01} | params))
    assert len(failed(result)) > 5
    assert not told


@pytest.mark.parametrize("saver", SAVERS)
def test_an_ordinary_file_is_not_blamed(saver: str, tmp_path: Path) -> None:
    result, told = attacked(loaded(Plain(), saver, tmp_path), epsilon=0.01)
    assert failed(result)
    assert not told


def test_rounding_to_bfloat16_is_not_blamed_on_the_gradient(tmp_path: Path) -> None:
    model = loaded(Plain(), "scripted", tmp_path)
    model.precision = Precision.BFLOAT16
    result, told = attacked(model, epsilon=0.01)
    assert failed(result)
    assert not told


@pytest.mark.parametrize(("network", "phrase"), [(Quantised, SHATTERED), (Detached, MISLEADING)])
def test_a_row_is_judged_by_itself(
    network: Callable[[], nn.Module], phrase: str, tmp_path: Path
) -> None:
    model, x = loaded(network(), "scripted", tmp_path), inputs()
    whole, told = attacked(model)
    assert told[phrase]
    for row in range(ROWS):
        job = Recorder()
        labels = whole.logits.argmax(1)[row : row + 1]
        data = Batch(x[row : row + 1], Targets.classes(labels), (row,))
        alone = PGD().run(model, data, PGD.params_type(epsilon=0.08), job)
        assert bool(job.warnings) == (row in told[phrase])
        assert float(alone.queries) == float(whole.queries[row])


def test_passes_that_look_for_signs_are_counted(tmp_path: Path) -> None:
    params = {"epsilon": 0.001, "random_start": False}
    result, _ = attacked(loaded(Plain(), "scripted", tmp_path), **params)
    assert failed(result) == list(range(ROWS))
    # input, 40 gradients, last point, result; a gradient and a difference
    assert (result.queries == 1 + 80 + 1 + 1 + 2 + 2).all()
    result, _ = attacked(loaded(Cut(), "scripted", tmp_path), **params)
    assert (result.queries == 1 + 80 + 1 + 1 + 3).all()


@pytest.mark.shared_data
@pytest.mark.parametrize("training", ["cln", "adv"])
def test_real_classifiers_are_not_blamed(training: str, shared_data: Path) -> None:
    model = lenet(shared_data, training)
    x, labels = digits(shared_data, 400)
    job = Recorder()
    for epsilon in (0.01, 0.1):
        params = FGSM.params_type(epsilon=epsilon)
        result = FGSM().run(model, batch(x, labels), params, job)
        assert int((~result.success).sum()) > 200
    assert not job.warnings
