"""Calls that succeed, over a fake worker: nothing is lost between protobuf and the engine."""

import json
import struct

import grpc
import pytest
from fake_worker import INFO, FakeWorker

from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import model_service_pb2 as models
from interpret_api.v1 import plugin_service_pb2 as plugins
from interpret_api.v1 import types_pb2 as types
from interpret_api.v1.interpret_service_pb2_grpc import InterpretServiceStub
from interpret_api.v1.model_service_pb2_grpc import ModelServiceStub
from interpret_api.v1.plugin_service_pb2_grpc import PluginServiceStub
from interpret_pictures.options import Rendering
from interpret_server.engine import api

DATA = struct.pack("<4f", 0.1, 0.2, 0.3, 0.4)
TENSOR = types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=[2, 2], data=DATA)
ARRAY = api.Array("float32", (2, 2), DATA)
INPUTS = types.Inputs(tensor=TENSOR)


def run_request(**fields: object) -> runs.RunRequest:
    return runs.RunRequest(**{"model": "net", "plugin": "echo", "inputs": INPUTS, **fields})


def test_run_hands_every_field_to_the_worker(channel: grpc.Channel, worker: FakeWorker) -> None:
    row = types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=[2], data=DATA[:8])
    InterpretServiceStub(channel).Run(
        run_request(
            targets=[
                types.Target(class_index=1),
                types.Target(neuron=types.NeuronIndex(index=[1, 0]), layer="relu"),
                types.Target(channel=0, layer="relu"),
                types.Target(whole_layer=True, layer="relu"),
                types.Target(direction=row, layer="relu"),
            ],
            params_json='{"steps": 3}',
            seeds=[2**64 - 1, 0],
            tensors={"mask": TENSOR},
            render=True,
            half_precision=True,
            priority=types.PRIORITY_HIGH,
        ),
        metadata=(("x-client-id", "team a"),),
    )
    assert worker.calls == [
        api.Call(
            model="net",
            plugin="echo",
            params='{"steps": 3}',
            inputs=ARRAY,
            targets=(
                api.Target("class", (1,)),
                api.Target("neuron", (1, 0), "relu"),
                api.Target("channel", (0,), "relu"),
                api.Target("layer", (), "relu"),
                api.Target("direction", (), "relu", api.Array("float32", (2,), DATA[:8])),
            ),
            seeds=(2**64 - 1, 0),
            tensors={"mask": ARRAY},
            render=Rendering(),
            half=True,
            progress=False,
            client="team a",
            priority=1,
        )
    ]


def test_run_returns_every_field_of_the_result(channel: grpc.Channel) -> None:
    target = types.Target(channel=0, layer="relu")
    request = run_request(targets=[target], seeds=[7], render=True, tensors={"mask": TENSOR})
    result = InterpretServiceStub(channel).Run(request).result
    assert result.tensors["attributions"] == TENSOR
    assert list(result.metrics["loss"].values) == [0.5, 1.5]
    assert [list(item.labels) for item in result.predictions_before] == [["dog", "cat"]] * 2
    assert list(result.predictions_after[0].probabilities) == [0.75, 0.25]
    assert list(result.predictions_after[0].logits) == [1.0, 0.0]
    assert result.warnings[0] == types.RowWarning(message="the gradient is zero", rows=[1])
    assert list(result.pictures["attributions"].png) == [b"png 0", b"png 1"]
    source = result.provenance
    assert (source.model, source.plugin, source.params_json) == ("net", "echo", "{}")
    assert (source.model_sha256, source.model_version) == (INFO.sha256, "3")
    assert list(source.targets) == [target]
    assert list(source.seeds) == [7]
    assert (source.queue_seconds, source.run_seconds, source.batch_rows) == (0.25, 0.5, 2)


@pytest.mark.parametrize(
    "target",
    [
        types.Target(class_index=1),
        types.Target(neuron=types.NeuronIndex(index=[1, 0]), layer="relu"),
        types.Target(whole_layer=True, layer="relu"),
        types.Target(direction=TENSOR, layer="relu"),
    ],
    ids=lambda target: target.WhichOneof("unit"),
)
def test_provenance_names_the_target_as_the_caller_did(
    channel: grpc.Channel, target: types.Target
) -> None:
    result = InterpretServiceStub(channel).Run(run_request(targets=[target])).result
    assert list(result.provenance.targets) == [target]


@pytest.mark.parametrize("previews", [False, True])
def test_a_stream_ends_with_its_one_result(channel: grpc.Channel, previews: bool) -> None:
    request = runs.RunStreamRequest(request=run_request(), previews=previews)
    events = list(InterpretServiceStub(channel).RunStream(request))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["progress", *["preview"] * previews, "result"]
    assert (events[0].progress.done, events[0].progress.total) == (1, 2)
    if previews:
        assert events[1].preview.tensors["images"] == TENSOR
        assert list(events[1].preview.pictures["images"].png) == [b"png"]


def test_predict_gives_logits_probabilities_and_classes(channel: grpc.Channel) -> None:
    request = models.PredictRequest(model="net", inputs=INPUTS)
    answer = ModelServiceStub(channel).Predict(request)
    assert list(answer.logits.shape) == list(answer.probabilities.shape) == [2, 2]
    assert struct.unpack("<4f", answer.logits.data) == (0, 1, 0, 1)
    assert list(answer.predictions[0].classes) == [1, 0]


def test_compute_gradient_sends_the_cotangent(channel: grpc.Channel) -> None:
    cotangent = types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=[2, 2], data=DATA[::-1])
    request = models.ComputeGradientRequest(model="net", inputs=INPUTS, grad_outputs=cotangent)
    answer = ModelServiceStub(channel).ComputeGradient(request)
    assert answer.gradient == TENSOR
    assert answer.logits == cotangent


def test_compute_activations_answers_by_layer(channel: grpc.Channel, worker: FakeWorker) -> None:
    request = models.ComputeActivationsRequest(model="net", inputs=INPUTS, layers=["relu"])
    answer = ModelServiceStub(channel).ComputeActivations(request)
    assert dict(answer.activations) == {"relu": TENSOR}
    assert json.loads(worker.calls[0].params) == {"layers": ["relu"]}


def test_a_model_is_described_in_full(channel: grpc.Channel) -> None:
    stub = ModelServiceStub(channel)
    model = stub.GetModel(models.GetModelRequest(name="net")).model
    assert list(stub.ListModels(models.ListModelsRequest()).models) == [model]
    assert (model.bounds.lower, model.bounds.upper) == (0.0, 1.0)
    assert list(model.layers) == [models.Layer(name="relu", kind="relu", shape=[2])]
    assert list(model.capabilities) == ["bounds", "gradient"]
    assert dict(model.lacking) == {"rectifiers": "net has no rectifier"}
    assert model.verification.reference == "onnxruntime"
    assert json.loads(model.manifest_json)["labels"] == ["cat", "dog"]
    simple = ("name", "version", "format", "form", "form_reason", "sha256", "size", "device")
    simple += ("precision", "input_name", "output_name", "input_dtype", "input_layout")
    simple += ("classes", "logits_from", "max_batch")
    assert {name: getattr(model, name) for name in simple} == {
        name: getattr(INFO, name) for name in simple
    }


def test_an_unloaded_model_is_gone(channel: grpc.Channel) -> None:
    stub = ModelServiceStub(channel)
    stub.UnloadModel(models.UnloadModelRequest(name="net"))
    assert not stub.ListModels(models.ListModelsRequest()).models


def test_plugins_are_listed_without_the_engines_primitives(channel: grpc.Channel) -> None:
    stub = PluginServiceStub(channel)
    found = stub.ListPlugins(plugins.ListPluginsRequest()).plugins
    assert "echo" in [plugin.name for plugin in found]
    assert not [plugin.name for plugin in found if plugin.name.startswith("_")]
    only = stub.ListPlugins(plugins.ListPluginsRequest(kind="attribution")).plugins
    assert [plugin.name for plugin in only] == ["echo"]


def test_a_plugin_is_described_in_full(channel: grpc.Channel) -> None:
    request = plugins.GetPluginRequest(name="echo")
    plugin = PluginServiceStub(channel).GetPlugin(request).plugin
    assert json.loads(plugin.params_schema_json)["properties"]["steps"] == {"minimum": 1}
    assert list(plugin.target_kinds) == ["channel", "class"]
    assert list(plugin.requires) == ["gradient"]
    assert plugin.result_fields[0].role == "tensor"
    assert plugin.tensors[0] == plugins.AuxTensor(
        name="mask", description="Where.", like_input=True
    )
    assert (plugin.kind, plugin.api, plugin.version) == ("attribution", 1, "1.2")
    assert (plugin.rows, plugin.inputs) == ("independent", "required")
