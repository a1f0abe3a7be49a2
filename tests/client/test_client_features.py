"""Named values and tokens in the client, and what the command tells of them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import interpret_client
from interpret_client.cli import main
from interpret_server.testing import serve

NAMES = ["height", "weight", "age"]
IRIS = ["sepal length", "sepal width", "petal length", "petal width"]


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(200, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.table(tokens).sum(1))


class Scene(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.facts = nn.Linear(12, 2), nn.Linear(3, 2)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        return self.image(image.flatten(1)) + self.facts(facts)


def linear(rows: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
        layer.bias.zero_()
    return layer


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(3)
    nets = {"table": linear([[1.0, -2.0, 0.5], [0, 0, 0]]), "bag": Bag(), "scene": Scene()}
    scene = [{"shape": [3, 2, 2]}, {"shape": [3], "features": NAMES}]
    manifests = {
        "table": {"shape": [3], "features": NAMES},
        "bag": {"shape": [None]},
        "scene": {"inputs": scene},
    }
    models = {}
    for name, net in nets.items():
        torch.jit.script(net.eval()).save(str(folder / f"{name}.pt"))
        models[name] = (folder / f"{name}.pt", manifests[name])
    with serve(None, models) as address:
        yield address


def interpret(address: str, *words: object) -> Result:
    environment = {"INTERPRET_ADDRESS": address}
    result = CliRunner().invoke(main, [str(word) for word in words], env=environment)
    assert result.exit_code == 0, result.stderr
    return result


def test_the_client_knows_the_names(address: str) -> None:
    with interpret_client.connect(address) as client:
        assert client.model("table").features == tuple(NAMES)
        assert client.model("bag").features == ()
        assert client.model("scene").inputs[1].features == tuple(NAMES)
    shown = json.loads(interpret(address, "models", "show", "table", "--json").stdout)
    assert shown["inputs"][0]["features"] == NAMES
    table = interpret(address, "models", "show", "table").stdout
    assert re.search("features +input: height, weight, age", table)


def test_a_wrong_number_of_names_is_refused_by_its_field(address: str, tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "net.pt"))
    manifest = {"shape": [2], "features": NAMES}
    with (
        interpret_client.connect(address) as client,
        pytest.raises(interpret_client.InvalidRequest) as caught,
    ):
        client.load_model("two", tmp_path / "net.pt", manifest=manifest)
    assert caught.value.violations[0].field == "manifest.inputs[0].features"


def test_the_command_tells_the_strongest_features_with_their_signs(
    address: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", np.array([[1, 1, 1], [3, 0.25, -8]], dtype=np.float32))
    words = ("input_x_gradient", "table", tmp_path / "rows.npy", "--target", "0")
    printed = interpret(address, "run", *words).stdout
    assert "strongest attributions" in printed
    assert re.search(r"0 +weight -2, height \+1, age \+0.5", printed)
    assert re.search(r"1 +age -4, height \+3, weight -0.5", printed)
    assert "strongest" not in interpret(address, "run", *words, "--json").stdout


def test_the_command_tells_tokens_by_their_positions(address: str, tmp_path: Path) -> None:
    ids = np.array([[7, 150, 9, 9, 31, 4, 2]])
    np.save(tmp_path / "ids.npy", ids)
    words = ("integrated_gradients", "bag", tmp_path / "ids.npy", "--target", "1")
    with interpret_client.connect(address) as client:
        found = client.run("integrated_gradients", "bag", ids, target=1)
    values = found.tensors["token_attributions"][0]
    np.testing.assert_allclose(values, found.tensors["attributions"][0].sum(1), rtol=1e-6)
    order = np.argsort(-abs(values), kind="stable")[:5]
    expected = ", ".join(f"{place} ({ids[0, place]}) {values[place]:+.3g}" for place in order)
    assert expected in interpret(address, "run", *words).stdout


def test_of_several_inputs_those_with_names_are_told(address: str, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.ones((1, 3, 2, 2), dtype=np.float32))
    np.save(tmp_path / "facts.npy", np.ones((1, 3), dtype=np.float32))
    given = [f"{name}={tmp_path / name}.npy" for name in ("image", "facts")]
    printed = interpret(address, "run", "saliency", "scene", *given, "--target", "1").stdout
    assert "strongest attributions.facts" in printed
    assert "strongest attributions.image" not in printed
    assert all(name in printed for name in NAMES)


@pytest.mark.shared_data
def test_iris_flowers_are_told_apart_by_their_petals(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "models/tabular"
    data = np.load(folder / "iris.npz")
    np.save(tmp_path / "rows.npy", data["x"][[0, 149]])
    manifest = {"features": IRIS}
    with serve(None, {"iris": (folder / "wml_iris.onnx", manifest)}) as address:
        with interpret_client.connect(address) as client:
            assert client.model("iris").features == tuple(IRIS)
            result = client.run("integrated_gradients", "iris", data["x"], params={"steps": 300})
        printed = interpret(
            address, "run", "integrated_gradients", "iris", tmp_path / "rows.npy"
        ).stdout
    strongest = abs(result.tensors["attributions"]).argmax(1)
    assert (strongest[data["y"] == 2] >= 2).all()
    assert abs(result.metrics["convergence_delta"]).max() < 0.05
    lines = [line for line in printed.splitlines() if re.match(r"[01] +\w+ \w+ [+-]", line)]
    assert len(lines) == 2
    assert all(name in line for line in lines for name in IRIS)


@pytest.mark.shared_data
def test_bytes_of_a_text_are_attributed_one_by_one(shared_data: Path) -> None:
    folder = shared_data / "models/text"
    known = json.loads((folder / "examples.json").read_text())
    example = known["examples"][0]
    ids = np.frombuffer(example["text"].encode(), np.uint8)[None].astype(np.int64)
    manifest = {"shape": [None], "dtype": "uint8", "labels": known["classes"]}
    with (
        serve(None, {"reddit": (folder / "reddit16_byte_bilstm.pt", manifest)}) as address,
        interpret_client.connect(address) as client,
    ):
        result = client.run("integrated_gradients", "reddit", ids, params={"steps": 200})
    tokens = result.tensors["token_attributions"]
    assert tokens.shape == ids.shape
    whole = result.tensors["attributions"]
    np.testing.assert_allclose(tokens, whole.sum(2), rtol=1e-4, atol=1e-5)
    assert result.before[0].labels[0] == example["expected"]
