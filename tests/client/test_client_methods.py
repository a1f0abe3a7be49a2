"""What the blocking client sends, and what it makes of the answers."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import fake_interpret_server as fakes
import numpy as np
import pytest
import torch
from fake_interpret_server import FakeServer

import interpret_client
from interpret_client import Client


def test_importing_the_client_imports_no_torch_and_torch_resolves_as_attribute() -> None:
    code = (
        "import sys, interpret_client\n"
        "assert 'torch' not in sys.modules and 'click' not in sys.modules\n"
        "from interpret_client import *\n"
        "interpret_client.aio.connect\n"
        "assert 'torch' not in sys.modules\n"
        "interpret_client.torch.RemoteModel\n"
        "assert 'torch' in sys.modules\n"
    )
    paths = [path for path in sys.path if path]
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
        check=True,
        timeout=120,
    )


def test_unknown_attribute_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        interpret_client.nothing_like_it  # noqa: B018


def test_public_names() -> None:
    assert {*interpret_client.__all__, "aio", "torch"} <= set(dir(interpret_client))
    for name in interpret_client.__all__:
        assert getattr(interpret_client, name) is not None


def test_methods_show_their_own_signature() -> None:
    import inspect

    signature = inspect.signature(Client.predict)
    assert list(signature.parameters) == ["self", "name", "inputs", "priority", "timeout"]
    assert signature.return_annotation is interpret_client.Predictions
    bound = inspect.signature(interpret_client.aio.AsyncClient.run)
    assert bound.parameters["seed"].default is None
    assert "Run a plugin" in (Client.run.__doc__ or "")


def test_predict_gives_logits_probabilities_classes_and_labels(
    client: Client, inputs: np.ndarray
) -> None:
    answer = client.predict("net", inputs)
    logits = inputs.reshape(2, -1) @ fakes.WEIGHTS.T
    np.testing.assert_allclose(answer.logits, logits, rtol=1e-6)
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, rtol=1e-6)
    assert answer.classes.tolist() == logits.argmax(1).tolist()
    assert answer.labels == tuple(fakes.LABELS[i] for i in logits.argmax(1))
    assert answer.logits.flags.writeable


def test_gradient_is_the_vector_jacobian_product(client: Client, inputs: np.ndarray) -> None:
    cotangent = np.array([[1, 0, 0], [0, 2, -1]], np.float32)
    answer = client.gradient("net", inputs, cotangent)
    np.testing.assert_allclose(answer.gradient.reshape(2, -1), cotangent @ fakes.WEIGHTS)
    assert answer.logits.shape == (2, 3)


def test_activations_by_layer(client: Client, inputs: np.ndarray) -> None:
    assert client.activations("net", inputs, ["/fc/Gemm"])["/fc/Gemm"].shape == (2, 3)
    assert list(client.activations("net", inputs, "fc")) == ["fc"]


def test_models_and_plugins_are_plain_values(client: Client) -> None:
    (listed,) = client.models()
    assert listed == client.model("net")
    assert listed.bounds == (0.0, 1.0)
    assert listed.layers == (interpret_client.Layer("/fc/Gemm", "linear", (3,)),)
    assert listed.lacking["rectifiers"] == "net has no rectifier"
    assert listed.manifest == {"version": "1"}
    (plugin,) = client.plugins()
    assert plugin == client.plugin("saliency")
    assert plugin.schema == fakes.SCHEMA
    assert plugin.requires == {"gradient"}
    assert plugin.tensors[0].name == "mask"
    assert client.plugins("attack") == ()


def test_model_without_bounds_has_none(client: Client, fake: FakeServer) -> None:
    fake.loaded["free"] = fakes.model("free", bounds=None)
    assert client.model("free").bounds is None


def test_run_sends_everything_and_reads_everything(
    client: Client, fake: FakeServer, inputs: np.ndarray
) -> None:
    result = client.run(
        "saliency",
        "net",
        inputs,
        target=[1, 2],
        params={"epsilon": np.float32(0.5), "steps": np.array([1, 2])},
        seed=7,
        tensors={"mask": np.ones((2, 4), np.float32)},
        render=True,
    )
    (request,) = fake.requests["Run"]
    assert json.loads(request.params_json) == {"epsilon": 0.5, "steps": [1, 2]}
    assert list(request.seeds) == [7]
    assert fakes.array(request.tensors["mask"]).shape == (2, 4)
    expected = fakes.WEIGHTS[[1, 2]].reshape(inputs.shape)
    np.testing.assert_array_equal(result.tensors["attributions"], expected)
    np.testing.assert_array_equal(result.metrics["distance"], [0, 0.1])
    assert len(result.before) == len(result.after) == 2
    assert result.before[0].labels[0] in fakes.LABELS
    assert result.warnings == (interpret_client.RowWarning("the gradient vanishes", (0,)),)
    assert result.pictures["attributions"] == (fakes.PNG, fakes.PNG)
    assert result.provenance.targets == (1, 2)
    assert result.provenance.seeds == (7,)
    assert result.provenance.params == {"epsilon": 0.5, "steps": [1, 2]}


def test_run_without_inputs_sends_none(client: Client, fake: FakeServer) -> None:
    client.run("saliency", "net", target=1)
    (request,) = fake.requests["Run"]
    assert not request.HasField("inputs")
    assert request.params_json == ""
    assert not request.seeds


def test_half_precision_arrives_as_float16(client: Client, inputs: np.ndarray) -> None:
    result = client.run("saliency", "net", inputs, half=True)
    assert result.tensors["attributions"].dtype == np.float16


def test_provenance_repeats_a_call(client: Client, fake: FakeServer, inputs: np.ndarray) -> None:
    target = [
        {"layer": "a", "channel": 3},
        {"layer": "a", "neuron": [1, 2, 3]},
        {"layer": "a"},
        {"layer": "a", "direction": [1.0, 2.0]},
        4,
    ]
    first = client.run("saliency", "net", inputs, target=target, seed=[1, 2**64 - 1])
    provenance = first.provenance
    client.run(
        provenance.plugin,
        provenance.model,
        inputs,
        target=provenance.targets,
        params=provenance.params,
        seed=provenance.seeds,
    )
    one, two = fake.requests["Run"]
    assert one == two


def test_path_is_uploaded_in_chunks_with_size_and_digest(
    client: Client, fake: FakeServer, tmp_path: Path
) -> None:
    data = np.random.default_rng(0).bytes((5 << 19) + 1)
    (tmp_path / "net.onnx").write_bytes(data)
    manifest = {"shape": [1, 2, 2], "bounds": (0, 1)}
    for source in (tmp_path / "net.onnx", str(tmp_path / "net.onnx"), data):
        loaded = client.load_model("new", source, manifest, replace=True)
        assert loaded.name == "new"
        header, *chunks = fake.requests["UploadModel"][-1]
        assert header.header.size == len(data)
        assert header.header.sha256 == hashlib.sha256(data).hexdigest()
        assert header.header.replace
        assert json.loads(header.header.manifest_json) == {"shape": [1, 2, 2], "bounds": [0, 1]}
        assert b"".join(message.chunk for message in chunks) == data
        assert max(len(message.chunk) for message in chunks) == 1 << 20


@pytest.mark.parametrize(
    ("name", "text"),
    [("m.toml", 'version = "3"\nbounds = [0, 1]'), ("m.json", '{"version":"3","bounds":[0,1]}')],
)
def test_manifest_may_be_a_file(
    client: Client, fake: FakeServer, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    client.load_model("new", b"model", tmp_path / name)
    header = fake.requests["UploadModel"][0][0].header
    assert json.loads(header.manifest_json) == {"version": "3", "bounds": [0, 1]}


def test_repository_model_is_loaded_by_the_server(client: Client, fake: FakeServer) -> None:
    client.load_model("new", server_path="net/1/model.onnx")
    client.load_model("entry")
    one, two = fake.requests["LoadModel"]
    assert (one.name, one.path, one.manifest_json) == ("new", "net/1/model.onnx", "")
    assert (two.name, two.path) == ("entry", "")
    client.unload_model("new")
    assert [model.name for model in client.models()] == ["net", "entry"]


def test_encoded_images_are_sent_as_they_are(
    client: Client, fake: FakeServer, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"first")
    client.predict("net", [tmp_path / "a.png", str(tmp_path / "a.png"), b"second"])
    client.predict("net", tmp_path / "a.png")
    many, one = fake.requests["Predict"]
    assert list(many.inputs.images.images) == [b"first", b"first", b"second"]
    assert list(one.inputs.images.images) == [b"first"]


def test_torch_tensors_are_taken_and_left_alone(client: Client, fake: FakeServer) -> None:
    x = torch.rand(2, *fakes.SHAPE).transpose(2, 3).requires_grad_()
    client.run("saliency", "net", x, target=torch.tensor([0, 2]))
    (request,) = fake.requests["Run"]
    np.testing.assert_array_equal(fakes.array(request.inputs.tensor), x.detach().numpy())
    assert [target.class_index for target in request.targets] == [0, 2]
    assert x.requires_grad
    assert x.grad is None


def test_every_call_carries_the_token_and_the_timeout(fake: FakeServer) -> None:
    with interpret_client.connect(fake.address, token="secret", timeout=30) as client:
        client.models()
        assert fake.metadata["authorization"] == "Bearer secret"
        client.predict("net", np.zeros((1, *fakes.SHAPE), np.float32), timeout=5)
    default, own = fake.time_left
    assert 20 < (default or 0) <= 31
    assert 0 < (own or 0) <= 6
