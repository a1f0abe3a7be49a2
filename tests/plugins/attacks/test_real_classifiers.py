"""Attacks on real classifiers, against published figures and against proofs of robustness."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from interpret_plugins.attacks.attack import AttackResult
from interpret_plugins.attacks.fgsm import FGSM, FGSMParams
from interpret_plugins.attacks.pgd import PGD, PGDParams
from interpret_plugins.attacks.square import Square, SquareParams
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job, Plugin

pytestmark = pytest.mark.shared_data


def load(path: Path, **manifest: object) -> Classifier:
    made = Manifest.model_validate(manifest)
    return load_classifier("net", path, made, device=torch.device("cpu")).classifier


def digits(folder: Path, rows: int) -> tuple[Tensor, Tensor]:
    file = numpy.load(folder / "images/mnist_test.npz")
    pixels = torch.from_numpy(file["x"][:rows].astype("float32") / 255)
    return pixels, torch.from_numpy(file["y"][:rows].astype("int64"))


def batch(x: Tensor, labels: Tensor, **tensors: Tensor) -> Batch:
    return Batch(x, Targets.classes(labels), tuple(range(len(x))), tensors)


MADRY = PGDParams(epsilon=0.3, step_size=0.01, steps=40, random_start=False)


def lenet(folder: Path, training: str) -> Classifier:
    path = folder / f"models/mnist/advertorch_lenet5_{training}.pt"
    return load(path, shape=(1, 28, 28), bounds=(0, 1))


def test_pgd_breaks_a_classifier_of_standard_training_wholly(shared_data: Path) -> None:
    x, labels = digits(shared_data, 200)
    result = PGD().run(lenet(shared_data, "cln"), batch(x, labels), MADRY, Job())
    assert result.success.all()
    assert 0.97 <= float(result.initially_correct.mean()) <= 1
    assert float(result.distance_linf.max()) <= 0.3


def test_pgd_finds_the_published_share_on_an_adversarially_trained_classifier(
    shared_data: Path,
) -> None:
    x, labels = digits(shared_data, 500)
    result = PGD().run(lenet(shared_data, "adv"), batch(x, labels), MADRY, Job())
    correct = result.initially_correct.bool()
    share = float(result.success[correct].double().mean())
    assert 0.053 <= share <= 0.083  # 6.8% on all 10,000 images


def test_square_breaks_a_classifier_of_standard_training_in_few_queries(shared_data: Path) -> None:
    x, labels = digits(shared_data, 50)
    params = SquareParams(epsilon=0.3, queries=300)
    result = Square().run(lenet(shared_data, "cln"), batch(x, labels), params, Job())
    assert result.success.all()
    assert float(result.queries.mean()) <= 30  # the authors' own code: 20 to 25


def test_fgsm_is_weaker_than_pgd_on_the_same_rows(shared_data: Path) -> None:
    x, labels = digits(shared_data, 200)
    model = lenet(shared_data, "adv")
    params = FGSMParams(epsilon=0.3)
    single = FGSM().run(model, batch(x, labels), params, Job()).success
    many = PGD().run(model, batch(x, labels), MADRY, Job()).success
    assert int(single.sum()) < int(many.sum())


@pytest.mark.parametrize(
    ("plugin", "params"),
    [(PGD, {"steps": 50, "restarts": 4, "loss": "margin"}), (Square, {"queries": 1500})],
)
@pytest.mark.parametrize(("truth", "count"), [("unsat", 12), ("sat", 7)])
def test_proofs_are_never_contradicted_and_known_violations_are_found(
    shared_data: Path,
    truth: str,
    count: int,
    plugin: type[Plugin[Any, AttackResult]],
    params: dict[str, Any],
) -> None:
    folder = shared_data / "vnncomp/mnist_fc_2021"
    boxes = numpy.load(folder / "boxes.npz")
    instances = [
        item
        for item in json.loads((folder / "index.json").read_text())["instances"]
        if item["model"] == "mnist-net_256x2.onnx"
        and item["truth"] == truth
        and (truth == "sat" or item["n_unsat"] >= 2)
    ][:count]
    assert len(instances) == count
    rows = [item["id"] for item in instances]
    exact = [torch.from_numpy(boxes[side][rows]) for side in ("lower", "upper")]
    lower, upper = (bound.float() for bound in exact)
    up, down = torch.full_like(lower, torch.inf), torch.full_like(lower, -torch.inf)
    lower = torch.where(lower.double() < exact[0], lower.nextafter(up), lower)
    upper = torch.where(upper.double() > exact[1], upper.nextafter(down), upper)
    model = load(folder / "models/mnist-net_256x2.onnx", shape=(784, 1), bounds=(0, 1))
    labels = torch.tensor([item["label"] for item in instances])
    data = batch(((lower + upper) / 2).clamp(0, 1), labels, lower=lower, upper=upper)
    result = plugin().run(model, data, plugin.params_type.model_validate(params), Job())
    assert (result.adversarial.double() >= exact[0]).all()
    assert (result.adversarial.double() <= exact[1]).all()
    assert result.initially_correct.all()
    if truth == "unsat":
        assert not result.success.any()
    else:
        assert result.success.all()
