"""Models of tokens and of several inputs, from the client and the command line to the file."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import interpret_client
from interpret_api.open_inference import grpc_predict_v2_pb2 as pb
from interpret_api.open_inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from interpret_client import Client, InvalidRequest
from interpret_client.cli import main
from interpret_plugins.attribution.saliency import Saliency
from interpret_server.registry import Registry
from interpret_server.testing.server import serve


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(torch.tanh(self.table(tokens)).mean(1))


class Scene(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.facts = nn.Linear(12, 3), nn.Linear(2, 3)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        return torch.tanh(self.image(image.flatten(1))) * self.facts(facts)


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {"text": Text().eval(), "scene": Scene().eval()}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    registry = Registry()
    registry.add(Saliency, "tests", "1")
    with serve(registry) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str, nets: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("models")
    manifests = {
        "text": {"shape": [None], "dtype": "int64"},
        "scene": {
            "inputs": [
                {"name": "image", "shape": [3, 2, 2], "bounds": [0, 1]},
                {"name": "facts", "shape": [2], "bounds": [0, 1]},
            ]
        },
    }
    with interpret_client.connect(address, timeout=120) as client:
        for name, net in nets.items():
            torch.jit.script(net).save(str(folder / f"{name}.pt"))
            client.load_model(name, folder / f"{name}.pt", manifest=manifests[name])
        yield client


def test_tokens_are_described_and_explained(client: Client, nets: dict) -> None:
    info = client.model("text")
    assert (info.input_shape, info.input_dtype, info.explained_shape) == ((-1,), "int64", (-1, 4))
    (item,) = info.inputs
    assert (item.kind, item.limit) == ("tokens", 9)
    tokens = np.array([[1, 5, 8, 2]])
    expected = nets["text"](torch.from_numpy(tokens)).detach()
    np.testing.assert_allclose(client.predict("text", tokens).logits, expected, rtol=1e-5)
    found = client.run("saliency", "text", tokens, target=1).tensors["attributions"]
    assert found.shape == (1, 4, 4)
    gradient = client.gradient("text", tokens, [[0.0, 1.0, 0.0]]).gradient
    assert gradient is not None
    np.testing.assert_allclose(np.abs(gradient), found, rtol=1e-5)


def test_several_inputs_are_sent_by_name(client: Client, nets: dict) -> None:
    info = client.model("scene")
    assert [item.name for item in info.inputs] == ["image", "facts"]
    assert (info.explained_shape, info.bounds) == ((14,), (0, 1))
    image, facts = torch.rand(2, 3, 2, 2), torch.rand(2, 2)
    sent = {"image": image, "facts": facts}
    expected = nets["scene"](image, facts).detach()
    np.testing.assert_allclose(client.predict("scene", sent).logits, expected, rtol=1e-5)
    leaves = [image.requires_grad_(), facts.requires_grad_()]
    grads = torch.autograd.grad(nets["scene"](*leaves)[:, 2].sum(), leaves)
    answer = client.gradient("scene", sent, np.eye(3, dtype=np.float32)[[2, 2]])
    assert answer.gradient is None
    result = client.run("saliency", "scene", sent, target=2)
    for name, grad in zip(("image", "facts"), grads, strict=True):
        np.testing.assert_allclose(answer.gradients[name], grad, rtol=1e-5)
        np.testing.assert_allclose(result.tensors[f"attributions.{name}"], grad.abs(), rtol=1e-5)
    with pytest.raises(InvalidRequest, match="facts"):
        client.predict("scene", {"image": image.detach()})


def test_the_open_inference_protocol_carries_several_inputs(
    client: Client, nets: dict, address: str
) -> None:
    image, facts = torch.rand(1, 3, 2, 2), torch.rand(1, 2)
    tensor = pb.ModelInferRequest.InferInputTensor
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="scene"))
        assert [tuple(item.shape) for item in metadata.inputs] == [(-1, 3, 2, 2), (-1, 2)]
        answer = stub.ModelInfer(
            pb.ModelInferRequest(
                model_name="scene",
                inputs=[
                    tensor(name="facts", datatype="FP32", shape=facts.shape),
                    tensor(name="image", datatype="FP32", shape=image.shape),
                ],
                raw_input_contents=[facts.numpy().tobytes(), image.numpy().tobytes()],
            )
        )
    logits = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(1, 3)
    np.testing.assert_allclose(logits, nets["scene"](image, facts).detach(), rtol=1e-5)


def test_the_command_takes_inputs_by_name(client: Client, address: str, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.random.rand(2, 3, 2, 2).astype(np.float32))
    np.save(tmp_path / "facts.npy", np.random.rand(2, 2).astype(np.float32))
    words = [f"{name}={tmp_path / name}.npy" for name in ("image", "facts")]
    server = ["--address", address]
    ran = CliRunner().invoke(
        main, ["run", "saliency", "scene", *words, "--target", "1", "--json", *server]
    )
    assert ran.exit_code == 0, ran.output
    assert "attributions.facts" in ran.output
    wrong = CliRunner().invoke(main, ["run", "saliency", "scene", "picture=x.npy", *server])
    assert wrong.exit_code == 2
    assert "no input 'picture'" in wrong.output
    shown = CliRunner().invoke(main, ["models", "show", "text", "--json", *server])
    assert json.loads(shown.output)["inputs"][0]["limit"] == 9
    table = CliRunner().invoke(main, ["models", "show", "text", *server])
    assert "tokens ? int64 other tokens" in table.output
