"""The client and the command against the real server, on a TorchScript archive."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import interpret_client
from interpret_client import Client, _chunks, _content
from interpret_client.cli import main
from interpret_plugins.attacks.pgd import PGD
from interpret_plugins.attribution.saliency import Saliency
from interpret_plugins.synthesis.class_visualization import ClassVisualization
from interpret_server.registry import Registry
from interpret_server.testing.server import serve

SHAPE = (1, 8, 8)
MANIFEST = {"shape": list(SHAPE), "bounds": [0, 1], "labels": ["zero", "one", "two"]}


def _network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)
    ).eval()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "net.pt"
    torch.jit.script(_network()).save(str(path))
    return path


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    registry = Registry()
    for plugin in (Saliency, PGD, ClassVisualization):
        registry.add(plugin, "tests", "1")
    with serve(registry) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str, archive: Path) -> Iterator[Client]:
    with interpret_client.connect(address, timeout=120) as client:
        client.load_model("net", archive, manifest=MANIFEST)
        yield client


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(4).random((3, *SHAPE), dtype=np.float32)


def test_saliency_is_the_eager_models_gradient(client: Client, inputs: np.ndarray) -> None:
    result = client.run("saliency", "net", inputs, target=2, params={"absolute": True}, seed=0)
    x = torch.from_numpy(inputs).requires_grad_()
    _network()(x)[:, 2].sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(
        result.tensors["attributions"], x.grad.abs().numpy(), rtol=1e-5, atol=1e-6
    )
    assert result.provenance.plugin == "saliency"
    assert result.provenance.model_sha256 == client.model("net").sha256
    assert result.provenance.params["absolute"] is True


def test_captum_on_the_remote_model_equals_the_servers_saliency(
    client: Client, inputs: np.ndarray
) -> None:
    module = interpret_client.torch.RemoteModel(client, "net")
    x = torch.from_numpy(inputs).requires_grad_()
    theirs = captum.attr.Saliency(module).attribute(x, target=[0, 1, 2])
    ours = client.run("saliency", "net", inputs, target=[0, 1, 2]).tensors["attributions"]
    np.testing.assert_allclose(theirs.detach().numpy(), ours, rtol=1e-5, atol=1e-7)


def test_predict_gradient_and_activations(client: Client, inputs: np.ndarray) -> None:
    network, x = _network(), torch.from_numpy(inputs)
    answer = client.predict("net", inputs)
    np.testing.assert_allclose(answer.logits, network(x).detach(), rtol=1e-5, atol=1e-6)
    assert answer.classes.tolist() == network(x).argmax(1).tolist()
    assert set(answer.labels) <= set(MANIFEST["labels"])
    weights = np.eye(3, dtype=np.float32)
    gradient = client.gradient("net", inputs, weights).gradient
    assert gradient.shape == inputs.shape
    layer = next(layer for layer in client.model("net").layers if len(layer.shape) == 3)
    values = client.activations("net", inputs, [layer.name])[layer.name]
    assert values.shape == (3, *layer.shape)
    target = {"layer": layer.name, "channel": 1}
    assert client.run("saliency", "net", inputs, target=target).tensors["attributions"].any()


def test_attack_stays_in_the_box_that_was_given(client: Client, inputs: np.ndarray) -> None:
    labels = client.predict("net", inputs).classes
    lower, upper = (inputs - 0.3).clip(0, 1), (inputs + 0.3).clip(0, 1)
    assert "properties" in client.plugin("pgd").schema
    result = client.run(
        "pgd", "net", inputs, target=labels, tensors={"lower": lower, "upper": upper}, seed=1
    )
    adversarial = result.tensors["adversarial"]
    assert (adversarial >= lower).all()
    assert (adversarial <= upper).all()
    after = client.predict("net", adversarial).classes
    np.testing.assert_array_equal(result.tensors["success"].astype(bool), after != labels)


def test_stream_of_a_synthesis_reports_and_draws(client: Client, tmp_path: Path) -> None:
    events = list(
        client.stream("class_visualization", "net", target=[1, 2], params={"steps": 4}, render=True)
    )
    assert all(
        sum(item is not None for item in (e.progress, e.preview, e.result)) == 1 for e in events
    )
    result = events[-1].result
    assert result is not None
    assert result.tensors["images"].shape == (2, *SHAPE)
    assert any(event.progress is not None for event in events)
    pictures = [path for path in result.save(tmp_path) if path.suffix == ".png"]
    assert len(pictures) == 2
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.width >= 8


def test_large_calls_give_the_same_to_the_last_bit(
    address: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(7).random((600, *SHAPE), dtype=np.float32)
    weights = np.random.default_rng(8).random((600, 3), dtype=np.float32)
    layer = next(layer.name for layer in client.model("net").layers if len(layer.shape) == 3)

    def answers() -> list[np.ndarray]:
        run = client.run("saliency", "net", x, target=1)
        event = list(client.stream("saliency", "net", x, target=1))[-1]
        assert event.result is not None
        gradient = client.gradient("net", x, weights).gradient
        assert gradient is not None
        return [
            run.tensors["attributions"],
            event.result.tensors["attributions"],
            client.predict("net", x).logits,
            gradient,
            client.activations("net", x, [layer])[layer],
        ]

    whole = answers()
    sent: list[str] = []
    messages = _chunks.Parts.messages

    def counted(self: _chunks.Parts, kind: str, request: Any) -> Any:
        sent.append(kind)
        return messages(self, kind, request)

    monkeypatch.setattr(_chunks.Parts, "messages", counted)
    monkeypatch.setattr(_content, "LARGE_BYTES", 1000)
    in_chunks = answers()
    kinds = ["run", "run_stream", "compute_gradient", "predict", "compute_activations"]
    assert sorted(sent) == sorted(kinds)
    for one, two in zip(whole, in_chunks, strict=True):
        np.testing.assert_array_equal(one, two)


def test_provenance_repeats_the_result_exactly(client: Client, inputs: np.ndarray) -> None:
    first = client.run("pgd", "net", inputs, params={"epsilon": 0.2})
    made = first.provenance
    again = client.run(
        made.plugin, made.model, inputs, target=made.targets, params=made.params, seed=made.seeds
    )
    np.testing.assert_allclose(
        first.tensors["adversarial"], again.tensors["adversarial"], atol=1e-6
    )


def test_refusals_name_what_is_wrong(client: Client, archive: Path, inputs: np.ndarray) -> None:
    with pytest.raises(interpret_client.NotFound, match="nothing"):
        client.predict("nothing", inputs)
    with pytest.raises(interpret_client.AlreadyExists, match="net"):
        client.load_model("net", archive, manifest=MANIFEST)
    with pytest.raises(interpret_client.InvalidRequest) as caught:
        client.run("saliency", "net", inputs, params={"absolut": True})
    assert [violation.field for violation in caught.value.violations] == ["params.absolut"]
    with pytest.raises(interpret_client.InvalidRequest, match="target"):
        client.run("saliency", "net", inputs, target=3)


async def test_asynchronous_client_gives_the_same(
    address: str, client: Client, inputs: np.ndarray
) -> None:
    async with interpret_client.aio.connect(address) as other:
        result = await other.run("saliency", "net", inputs, target=1)
        events = [event async for event in other.stream("saliency", "net", inputs, target=1)]
    expected = client.run("saliency", "net", inputs, target=1).tensors["attributions"]
    np.testing.assert_allclose(result.tensors["attributions"], expected, atol=1e-6)
    assert events[-1].result is not None


def test_command_explains_an_image(address: str, client: Client, tmp_path: Path) -> None:
    pixels = (np.random.default_rng(5).random((8, 8)) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    words = ["--address", address, "run", "saliency", "net", str(tmp_path / "digit.png")]
    words += ["--target", "1", "--output", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["provenance"]["targets"] == [1]
    pictures = [Path(name) for name in document["files"] if name.endswith(".png")]
    assert len(pictures) == 1
    with Image.open(io.BytesIO(pictures[0].read_bytes())) as picture:
        assert picture.format == "PNG"


def test_commands_load_list_and_unload(address: str, archive: Path, tmp_path: Path) -> None:
    def interpret(*words: str) -> str:
        result = CliRunner().invoke(main, ["--address", address, *words])
        assert result.exit_code == 0, result.stderr
        return result.stdout

    loaded = interpret("load", "other", str(archive), "--shape", "1,8,8", "--bounds", "0,1")
    assert "Loaded other: torchscript, input 1x8x8, 3 classes" in loaded
    assert "other" in interpret("models")
    assert "capabilities" in interpret("models", "show", "other")
    assert "class_visualization" in interpret("plugins")
    assert "absolute" in interpret("plugins", "show", "saliency")
    np.save(tmp_path / "x.npy", np.zeros(SHAPE))
    assert "x.npy" in interpret("predict", "other", str(tmp_path / "x.npy"))
    interpret("unload", "other")
    assert "other" not in interpret("models")
