"""Real classifiers that others trained reproduce the figures recorded for them."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from interpret_server.models.images import decode_images
from interpret_server.models.loading import LoadedModel, load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets

pytestmark = pytest.mark.shared_data

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR: dict[str, Any] = {"shape": (3, 32, 32), "bounds": (0, 1)}
MNIST: dict[str, Any] = {"shape": (1, 28, 28), "bounds": (0, 1)}
PHOTO: dict[str, Any] = {"resize": 256, "crop": 224}


class Photos(NamedTuple):
    encoded: list[bytes]
    labels: list[dict[str, Any]]


@cache
def _photos(folder: Path) -> Photos:
    labels = json.loads((folder / "labels.json").read_text())["labels"]
    return Photos([(folder / item["file"]).read_bytes() for item in labels], labels)


def _load(path: Path, fields: dict[str, Any]) -> LoadedModel:
    manifest = Manifest.model_validate(fields)
    loaded = load_classifier("net", path, manifest, device=torch.device("cpu"))
    info = loaded.info
    assert info.form == "graph"
    assert info.verification.reference in ("torch.jit", "onnxruntime")
    assert info.verification.relative_difference < 1e-5
    assert info.capabilities >= {"gradient", "layers", "rectifiers"}
    return loaded


def _logits(loaded: LoadedModel, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([loaded.classifier(rows) for rows in x.split(100)])


def _right(loaded: LoadedModel, x: Tensor, labels: Tensor) -> int:
    return int((_logits(loaded, x).argmax(1) == labels).sum())


@pytest.mark.parametrize(
    ("file", "fields", "key", "source"),
    [
        (
            "squeezenet1_1_rgb01.pt",
            {"shape": (3, 224, 224), "bounds": (0, 1), **PHOTO},
            "sq11",
            "logits",
        ),
        (
            "SqueezeNet1_1_fp32.onnx",
            {"bounds": (0, 255), "mean": (104, 117, 123), "color": "BGR", **PHOTO},
            "sq11_onnx32",
            "softmax",
        ),
        (
            "mobilenet_v2_dequant_imagenetnorm.pt",
            {"shape": (3, 224, 224), "bounds": (0, 1), **IMAGENET, **PHOTO},
            "mv2",
            "logits",
        ),
    ],
)
def test_imagenet_classifiers_give_the_recorded_answers_to_encoded_photos(
    shared_data: Path, file: str, fields: dict[str, Any], key: str, source: str
) -> None:
    loaded = _load(shared_data / "models/imagenet" / file, fields)
    photos, info = _photos(shared_data / "images/imagenet30"), loaded.info
    assert (info.logits_from, info.classes) == (source, 1000)
    x = decode_images(
        photos.encoded,
        info.manifest.input,
        shape=info.input_shape,
        layout=info.input_layout,
        bounds=info.bounds,
    )
    probabilities, classes = (
        torch.cat([_logits(loaded, rows) for rows in x.split(10)]).softmax(1).max(1)
    )
    assert classes.tolist() == [item["pred"][key] for item in photos.labels]
    recorded = torch.tensor([item["prob"][key] for item in photos.labels])
    torch.testing.assert_close(probabilities, recorded, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("file", "fields", "right"),
    [
        ("cifar10/akamaster_resnet20_rgb01.pt", CIFAR, 94),
        ("cifar10/akamaster_resnet20_imagenetnorm_input.pt", {**CIFAR, **IMAGENET}, 94),
        ("cifar10/captum_cifar_torchvision_rgb01.pt", CIFAR, 62),
        ("cifar10/kw_cifar_small_8px_rgb01.pt", CIFAR, 40),
        ("awkward/mlperf_tiny_resnet8_cifar10_nhwc_tf2onnx.onnx", {"bounds": (0, 255)}, 88),
    ],
)
def test_cifar_classifiers_are_as_good_as_recorded(
    shared_data: Path, file: str, fields: dict[str, Any], right: int
) -> None:
    data = np.load(shared_data / "images/cifar10_exact.npz")
    unbiased = data["group"] == "eran_first100"
    x, labels = torch.from_numpy(data["x"][unbiased]).float(), torch.from_numpy(data["y"][unbiased])
    loaded = _load(shared_data / "models" / file, fields)
    x = x * (fields["bounds"][1] / 255)
    if loaded.info.input_layout == "HWC":
        assert loaded.info.logits_from == "softmax"
        x = x.permute(0, 2, 3, 1).contiguous()
    assert _right(loaded, x, labels) == right


@pytest.mark.parametrize(
    ("file", "right"),
    [
        ("advertorch_lenet5_cln.pt", 9889),
        ("advertorch_lenet5_adv.pt", 9864),
        ("kw_mnist_eps0.1.pt", 9820),
    ],
)
def test_mnist_classifiers_reach_their_published_accuracy(
    shared_data: Path, file: str, right: int
) -> None:
    data = np.load(shared_data / "images/mnist_test.npz")
    loaded = _load(shared_data / "models/mnist" / file, MNIST)
    assert _right(loaded, torch.from_numpy(data["x"]) / 255, torch.from_numpy(data["y"])) == right


def test_two_forms_of_one_network_agree(shared_data: Path) -> None:
    folder = shared_data / "models/imagenet"
    rgb = _load(folder / "squeezenet1_1_rgb01.pt", {"shape": (3, 224, 224), "bounds": (0, 1)})
    bgr = _load(folder / "SqueezeNet1_1_fp32.onnx", {"bounds": (0, 255), "mean": (104, 117, 123)})
    x = torch.rand(2, 3, 224, 224)
    torch.testing.assert_close(
        _logits(bgr, x.flip(1) * 255).log_softmax(1),
        _logits(rgb, x).log_softmax(1),
        rtol=1e-2,
        atol=5e-2,
    )


def test_a_tabular_classifier_reaches_its_recorded_accuracy(shared_data: Path) -> None:
    data = np.load(shared_data / "models/tabular/iris.npz")
    loaded = _load(shared_data / "models/tabular/wml_iris.onnx", {})
    x, labels = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    assert "bounds" in loaded.info.lacking
    assert _right(loaded, x, labels) == 147


def test_a_classifier_of_bytes_is_explained_at_its_embedding(shared_data: Path) -> None:
    folder = shared_data / "models/text"
    loaded = _load(folder / "reddit16_byte_bilstm.pt", {"shape": (None,), "dtype": "uint8"})
    model, info = loaded.classifier, loaded.info
    (item,) = info.inputs
    assert (info.form, item.kind, item.shape, item.limit) == ("graph", "tokens", (-1,), 256)
    assert info.explained_shape == (-1, 64)
    known = json.loads((folder / "examples.json").read_text())
    for example in known["examples"]:
        tokens = torch.tensor(list(example["text"].encode()))[None]
        x = model.encode(tokens)
        assert x.shape == (1, tokens.shape[1], 64)
        assert known["classes"][int(model(x).argmax())] == example["expected"]
        gradient = model.gradient(x, Targets.classes(torch.tensor([3]))).inputs
        assert gradient.abs().sum(2).min() > 0


def test_every_network_of_the_verification_benchmarks_loads(shared_data: Path) -> None:
    files = sorted((shared_data / "vnncomp").glob("*/models/*.onnx"))
    assert len(files) == 14
    for file in files:
        info = _load(file, {"bounds": (0, 1)}).info
        assert (info.classes, info.logits_from) == (10, "logits"), file.name
