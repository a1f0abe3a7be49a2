"""A small server of the API around one linear classifier, whose failures tests can dictate."""

import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import fake_chunks
import grpc
import numpy as np
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from interpret_api.v1 import chunked_service_pb2_grpc as chunked_grpc
from interpret_api.v1 import interpret_service_pb2 as interpret
from interpret_api.v1 import interpret_service_pb2_grpc as interpret_grpc
from interpret_api.v1 import model_service_pb2 as models
from interpret_api.v1 import model_service_pb2_grpc as models_grpc
from interpret_api.v1 import plugin_service_pb2 as plugins
from interpret_api.v1 import plugin_service_pb2_grpc as plugins_grpc
from interpret_api.v1 import types_pb2 as types

WEIGHTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
SHAPE = (1, 2, 2)
PNG = b"\x89PNG\r\n\x1a\nnot a real picture"
LABELS = ("cat", "dog", "owl")

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "absolute": {"type": "boolean", "default": False, "description": "Drop the sign."},
        "steps": {"type": "integer", "default": 3, "minimum": 1, "description": "Steps to take."},
        "epsilon": {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]},
        "norm": {"$ref": "#/$defs/Norm", "default": "linf"},
    },
    "$defs": {"Norm": {"enum": ["l1", "l2", "linf"], "type": "string"}},
    "required": ["epsilon"],
}


@dataclass(frozen=True)
class Failure:
    """What a call is answered instead of its result."""

    code: grpc.StatusCode
    message: str = "the server's sentence"
    details: tuple[Message, ...] = ()

    def abort(self, context: grpc.ServicerContext) -> None:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        context.set_trailing_metadata(
            (("grpc-status-details-bin", status.SerializeToString()),) if self.details else ()
        )
        context.abort(self.code, self.message)


def overloaded(seconds: float = 0.01) -> Failure:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromNanoseconds(int(seconds * 1e9))
    info = error_details_pb2.ErrorInfo(reason="OVERLOADED")
    return Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", (info, retry))


def tensor(array: np.ndarray) -> types.Tensor:
    codes = {"float32": types.DATA_TYPE_FLOAT32, "float16": types.DATA_TYPE_FLOAT16}
    return types.Tensor(
        dtype=codes[array.dtype.name],
        shape=array.shape,
        data=array.astype("<" + array.dtype.str[1:]).tobytes(),
    )


def array(message: types.Tensor) -> np.ndarray:
    assert message.dtype == types.DATA_TYPE_FLOAT32
    return np.frombuffer(message.data, "<f4").reshape(tuple(message.shape))


def rows(inputs: types.Inputs) -> np.ndarray:
    if inputs.WhichOneof("value") == "images":
        return np.stack(
            [np.full(SHAPE, len(image) / 1000, np.float32) for image in inputs.images.images]
        )
    return array(inputs.tensor)


def logits_of(values: np.ndarray) -> np.ndarray:
    return (values.reshape(len(values), -1) @ WEIGHTS.T).astype(np.float32)


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def predictions(logits: np.ndarray) -> list[types.Prediction]:
    answers = []
    for row, chances in zip(logits, probabilities_of(logits), strict=True):
        order = np.argsort(-row)
        answers.append(
            types.Prediction(
                classes=order.tolist(),
                probabilities=chances[order].tolist(),
                logits=row[order].tolist(),
                labels=[LABELS[i] for i in order],
            )
        )
    return answers


def model(name: str, **changes: Any) -> models.Model:
    return models.Model(
        **{
            "name": name,
            "version": "1",
            "format": "onnx",
            "form": "graph",
            "sha256": "ab" * 32,
            "size": 123,
            "device": "cpu",
            "precision": "float32",
            "input_shape": SHAPE,
            "input_dtype": "float32",
            "input_layout": "CHW",
            "bounds": models.Bounds(lower=0, upper=1),
            "classes": 3,
            "labels": LABELS,
            "logits_from": "logits",
            "layers": [models.Layer(name="/fc/Gemm", kind="linear", shape=[3])],
            "capabilities": ["gradient", "layers", "bounds"],
            "lacking": {"rectifiers": f"{name} has no rectifier"},
            "verification": models.Verification(reference="onnxruntime", batch_sizes=[1, 2]),
            "manifest_json": '{"version": "1"}',
            "max_batch": 64,
            **changes,
        }
    )


SALIENCY = plugins.Plugin(
    name="saliency",
    kind="attribution",
    api=1,
    version="0.1.0",
    distribution="interpret-server",
    summary="The gradient [bold] of the target.",
    description="The gradient [bold] of the target.\n\nA second paragraph.",
    requires=["gradient"],
    rows="independent",
    inputs="required",
    target_kinds=["class", "neuron"],
    params_schema_json=json.dumps(SCHEMA),
    result_fields=[plugins.ResultField(name="attributions", role="tensor", description="(N, ...)")],
    tensors=[plugins.AuxTensor(name="mask", description="Where to look.", like_input=True)],
)


@dataclass
class FakeServer:
    """The requests that came, the failures that are due, and what happened to streams."""

    address: str = ""
    requests: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    metadata: dict[str, Any] = field(default_factory=dict)
    time_left: list[float | None] = field(default_factory=list)
    failures: dict[str, deque[Failure]] = field(default_factory=lambda: defaultdict(deque))
    loaded: dict[str, models.Model] = field(default_factory=lambda: {"net": model("net")})
    running: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    truncate_stream: bool = False
    chunked: list[str] = field(default_factory=list)  # the kinds of requests that came in chunks
    spoil: Callable[[list[Any]], list[Any]] = list  # what becomes of the messages of an answer

    def fail(self, method: str, *failures: Failure) -> None:
        self.failures[method].extend(failures)

    def enter(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        self.requests[method].append(request)
        self.metadata = dict(context.invocation_metadata())
        self.time_left.append(context.time_remaining())
        if self.failures[method]:
            self.failures[method].popleft().abort(context)

    def hang(self, context: grpc.ServicerContext) -> None:
        """Waits until the caller is gone."""
        gone = threading.Event()
        context.add_callback(gone.set)
        self.running.set()
        assert gone.wait(30)
        self.cancelled.set()


def unary(method: Callable[..., Any]) -> Callable[..., Any]:
    def answer(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        self.fake.enter(method.__name__, request, context)
        return method(self, request, context)

    return answer


class Models(models_grpc.ModelServiceServicer):
    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    def _load(self, name: str, replace: bool, context: grpc.ServicerContext) -> models.Model:
        if name in self.fake.loaded and not replace:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"name: {name} is loaded")
        return self.fake.loaded.setdefault(name, model(name))

    @unary
    def LoadModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        return models.LoadModelResponse(model=self._load(request.name, request.replace, context))

    def UploadModel(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        messages = list(requests)
        self.fake.enter("UploadModel", messages, context)
        header = messages[0].header
        return models.UploadModelResponse(model=self._load(header.name, header.replace, context))

    @unary
    def UnloadModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        if self.fake.loaded.pop(request.name, None) is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model is called {request.name!r}")
        return models.UnloadModelResponse()

    @unary
    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.name not in self.fake.loaded:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model is called {request.name!r}")
        return models.GetModelResponse(model=self.fake.loaded[request.name])

    @unary
    def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:
        return models.ListModelsResponse(models=self.fake.loaded.values())

    @unary
    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.model == "hanging":
            self.fake.hang(context)
        logits = logits_of(rows(request.inputs))
        return models.PredictResponse(
            logits=tensor(logits),
            probabilities=tensor(probabilities_of(logits)),
            predictions=predictions(logits),
        )

    @unary
    def ComputeGradient(self, request: Any, context: grpc.ServicerContext) -> Any:
        values = rows(request.inputs)
        gradient = (array(request.grad_outputs) @ WEIGHTS).reshape(values.shape)
        return models.ComputeGradientResponse(
            gradient=tensor(gradient), logits=tensor(logits_of(values))
        )

    @unary
    def ComputeActivations(self, request: Any, context: grpc.ServicerContext) -> Any:
        values = logits_of(rows(request.inputs))
        return models.ComputeActivationsResponse(
            activations={layer: tensor(values) for layer in request.layers}
        )


class Plugins(plugins_grpc.PluginServiceServicer):
    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    @unary
    def ListPlugins(self, request: Any, context: grpc.ServicerContext) -> Any:
        found = [SALIENCY] if request.kind in ("", SALIENCY.kind) else []
        return plugins.ListPluginsResponse(plugins=found)

    @unary
    def GetPlugin(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.name != SALIENCY.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no plugin is called {request.name!r}")
        return plugins.GetPluginResponse(plugin=SALIENCY)


class Interpret(interpret_grpc.InterpretServiceServicer):
    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    def _result(self, request: interpret.RunRequest) -> interpret.Result:
        given = request.HasField("inputs")
        values = rows(request.inputs) if given else np.zeros((1, *SHAPE), np.float32)
        classes = [target.class_index for target in request.targets] or [0]
        gradient = WEIGHTS[np.resize(classes, len(values))].reshape(values.shape)
        if request.half_precision:
            gradient = gradient.astype(np.float16)
        before = predictions(logits_of(values))
        success = types.Tensor(
            dtype=types.DATA_TYPE_BOOL, shape=[len(values)], data=b"\1" * len(values)
        )
        pictures = {"attributions": interpret.Pictures(png=[PNG] * len(values))}
        return interpret.Result(
            tensors={"success": success, "attributions": tensor(gradient)},
            metrics={"distance": interpret.Metric(values=np.arange(len(values)) / 10)},
            predictions_before=before,
            predictions_after=before,
            warnings=[types.RowWarning(message="the gradient vanishes", rows=[0])],
            pictures=pictures if request.render else {},
            provenance=interpret.Provenance(
                model=request.model,
                model_sha256="ab" * 32,
                plugin=request.plugin,
                params_json=request.params_json or "{}",
                targets=request.targets,
                seeds=request.seeds,
                device="cpu",
                precision="float32",
                run_seconds=0.5,
                batch_rows=len(values),
            ),
        )

    @unary
    def Run(self, request: Any, context: grpc.ServicerContext) -> Any:
        return interpret.RunResponse(result=self._result(request))

    def RunStream(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self.fake.enter("RunStream", request, context)
        for done in range(1, 4):
            progress = interpret.Progress(done=done, total=3)
            yield interpret.RunStreamResponse(progress=progress)
            if request.previews:
                image = tensor(np.full((1, *SHAPE), done, np.float32))
                preview = interpret.Preview(done=done, total=3, tensors={"images": image})
                yield interpret.RunStreamResponse(preview=preview)
            if request.request.model == "hanging":
                self.fake.hang(context)
                return
        if not self.fake.truncate_stream:
            yield interpret.RunStreamResponse(result=self._result(request.request))


class Chunked(chunked_grpc.ChunkedServiceServicer):
    """Hands requests that came in chunks to the others, and cuts their answers."""

    def __init__(self, fake: FakeServer, models: Models, interpret: Interpret) -> None:
        self.fake = fake
        self.methods: dict[str, Callable[..., Any]] = {
            "run": interpret.Run,
            "run_stream": interpret.RunStream,
            "predict": models.Predict,
            "compute_gradient": models.ComputeGradient,
            "compute_activations": models.ComputeActivations,
        }

    def Call(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        kind, request = fake_chunks.restored(list(requests))
        self.fake.chunked.append(kind)
        answered = self.methods[kind](request, context)
        for answer in answered if kind == "run_stream" else [answered]:
            yield from self.fake.spoil(list(fake_chunks.cut(kind, answer)))


def start() -> tuple[FakeServer, grpc.Server]:
    fake = FakeServer()
    server = grpc.server(
        ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 8 << 20)]
    )
    models, interpret = Models(fake), Interpret(fake)
    models_grpc.add_ModelServiceServicer_to_server(models, server)
    plugins_grpc.add_PluginServiceServicer_to_server(Plugins(fake), server)
    interpret_grpc.add_InterpretServiceServicer_to_server(interpret, server)
    chunked_grpc.add_ChunkedServiceServicer_to_server(Chunked(fake, models, interpret), server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    return fake, server
