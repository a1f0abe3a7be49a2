"""Pictures through a real server: which are drawn, what is refused, the same as a client draws."""

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import torch
from failures import failure_of
from torch import nn

import interpret_client
from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import rendering_pb2 as rendering
from interpret_api.v1 import types_pb2 as types
from interpret_api.v1.interpret_service_pb2_grpc import InterpretServiceStub
from interpret_client import pictures
from interpret_plugins.attribution.grad_cam import GradCAM
from interpret_plugins.attribution.saliency import Saliency
from interpret_server.models.classifier import Classifier
from interpret_server.registry import Registry
from interpret_server.testing import classifier
from interpret_server.testing.server import serve

SHAPE = (3, 24, 24)
STYLES = ("auto", "heatmap", "signed", "overlay", "top_k", "object_mask")
OPTIONS = {"styles": STYLES, "alpha": 0.5, "percentile": 90, "top": 0.2, "backdrop": "color"}


def network() -> Classifier:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 10 * 10, 5)
    )
    return classifier(module.eval(), SHAPE, bounds=(0, 1), input_layout="CHW")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    registry = Registry()
    for plugin in (Saliency, GradCAM):
        registry.add(plugin, "tests")
    with serve(registry, {"net": network()}) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[interpret_client.Client]:
    with interpret_client.connect(address) as client:
        yield client


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(0).random((2, *SHAPE), dtype=np.float32)


@pytest.mark.parametrize("params", [{"absolute": True}, {"absolute": False}])
def test_server_and_client_draw_the_same_bytes(
    client: interpret_client.Client, inputs: np.ndarray, params: dict[str, bool]
) -> None:
    result = client.run("saliency", "net", inputs, target=1, params=params, render=OPTIONS)
    drawn = pictures.draw(
        result.tensors, pictures.Rendering.of(OPTIONS), pictures.Scene(inputs, "CHW", (0, 1))
    )
    assert set(result.pictures) == {
        "attributions",
        "attributions.heatmap",
        "attributions.signed",
        "attributions.overlay",
        "attributions.top_k",
        "attributions.object_mask",
        "attributions.object_cutout",
    }
    assert result.pictures == drawn.pictures
    for style in STYLES:
        name = "attributions" if style == "auto" else f"attributions.{style}"
        options = {**OPTIONS, "styles": style}
        picture = result.picture(options, row=1, inputs=inputs, layout="CHW", bounds=(0, 1))
        assert pictures.png(picture) == result.pictures[name][1]


def test_coarse_maps_are_drawn_at_the_size_of_the_input(
    client: interpret_client.Client, inputs: np.ndarray
) -> None:
    result = client.run(
        "grad_cam", "net", inputs, target=1, params={"upsample": "none"}, render="overlay"
    )
    assert result.tensors["attributions"].shape == (2, 10, 10)
    with result.picture("overlay", inputs=inputs, bounds=(0, 1)) as picture:
        assert picture.size == (264, 264)
        assert pictures.png(picture) == result.pictures["attributions.overlay"][0]


def test_true_means_the_style_auto(client: interpret_client.Client, inputs: np.ndarray) -> None:
    plain, drawn, named = (
        client.run("saliency", "net", inputs, target=1, render=choice).pictures
        for choice in (False, True, "auto")
    )
    assert plain == {}
    assert list(drawn) == ["attributions"]
    assert drawn == named


def test_why_no_object_was_cut_out_is_told_with_its_rows(
    client: interpret_client.Client, inputs: np.ndarray
) -> None:
    inputs[1] = 0.5
    result = client.run("saliency", "net", inputs, target=1, render="object_mask")
    (warning,) = (item for item in result.warnings if "object" in item.message)
    assert warning.message == "no object was cut out: the attribution is the same everywhere"
    assert warning.rows == (1,)
    assert len(result.pictures["attributions.object_cutout"]) == 2


def test_too_many_object_masks_are_refused(client: interpret_client.Client) -> None:
    many = np.zeros((33, *SHAPE), np.float32)
    with pytest.raises(interpret_client.InvalidRequest, match="at most 32 rows a call, not 33"):
        client.run("saliency", "net", many, target=1, render="object_mask")


@pytest.mark.parametrize(
    ("choice", "field"),
    [
        ("overlai", "rendering.styles"),
        (["overlay", 3], "rendering.styles"),
        (7, "rendering.styles"),
        ({"style": "overlay", "styles": ["signed"]}, "rendering.styles"),
        ({"alhpa": 0.5}, "rendering.alhpa"),
        ({"alpha": 1.5}, "rendering.alpha"),
        ({"alpha": "much"}, "rendering.alpha"),
        ({"percentile": 0}, "rendering.percentile"),
        ({"percentile": float("nan")}, "rendering.percentile"),
        ({"top": 0}, "rendering.top"),
        ({"colors": "jet"}, "rendering.colors"),
        ({"foreground": 0.2}, "rendering.background"),
    ],
)
def test_the_client_refuses_wrong_options_by_name(
    client: interpret_client.Client, inputs: np.ndarray, choice: object, field: str
) -> None:
    with pytest.raises(interpret_client.InvalidRequest) as caught:
        client.run("saliency", "net", inputs, target=1, render=choice)
    assert [item.field for item in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"percentile": 101}, "rendering.percentile"),
        ({"percentile": 0}, "rendering.percentile"),
        ({"alpha": -0.1}, "rendering.alpha"),
        ({"top": 0}, "rendering.top"),
        ({"foreground": float("nan")}, "rendering.foreground"),
        ({"foreground": 0}, "rendering.background"),
        ({"background": 0.99}, "rendering.background"),
        ({"smoothing": float("inf")}, "rendering.smoothing"),
        ({"styles": [4, 99]}, "rendering.styles[1]"),
        ({"channels": 17}, "rendering.channels"),
        ({"colors": -1}, "rendering.colors"),
    ],
)
def test_the_server_refuses_wrong_options_by_name(
    address: str, inputs: np.ndarray, options: dict[str, object], field: str
) -> None:
    tensor = types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=inputs.shape, data=inputs.tobytes())
    request = runs.RunRequest(
        model="net",
        plugin="saliency",
        inputs=types.Inputs(tensor=tensor),
        rendering=rendering.Rendering(**options),
    )
    with grpc.insecure_channel(address) as channel:
        run = InterpretServiceStub(channel).Run
        failure = failure_of(lambda: run(request))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(failure.fields) == [field]


def test_zero_is_not_taken_for_the_default(
    client: interpret_client.Client, inputs: np.ndarray
) -> None:
    faint, strong = (
        client.run("saliency", "net", inputs, render={"style": "overlay", "alpha": alpha}).pictures
        for alpha in (0, 0.8)
    )
    assert faint != strong
    under = pictures.png(
        pictures.overlay(np.zeros(SHAPE), inputs[0], pictures.Rendering(alpha=0), bounds=(0, 1))
    )
    assert faint["attributions.overlay"][0] == under
