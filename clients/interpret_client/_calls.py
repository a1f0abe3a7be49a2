"""Every method of the client as a description: which RPC, which request, how to read the answer.

Nothing here sends anything, so the blocking and the asynchronous client share all of it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from interpret_api.v1 import interpret_service_pb2 as interpret
from interpret_api.v1 import model_service_pb2 as models_api
from interpret_api.v1 import plugin_service_pb2 as plugins_api
from interpret_pictures.options import Choice

from . import _codec as codec
from . import _parse as parse
from ._chunks import CHUNK_BYTES
from ._content import Content
from ._rendering import encode_rendering, read_rendering
from ._requests import Call
from .errors import InvalidRequest
from .results import Array, Event, Gradient, ModelInfo, PluginInfo, Predictions, Result


def load_model(
    name: str,
    source: str | PathLike[str] | bytes | None = None,
    manifest: Mapping[str, Any] | str | PathLike[str] | None = None,
    replace: bool = False,
    *,
    server_path: str | None = None,
    timeout: float | None = None,
) -> Call[ModelInfo]:
    """Load a classifier and serve it as `name`.

    Args:
        name: the name to serve it under.
        source: a local file or its bytes, uploaded to the server; None for a model of the
            server's own repository.
        manifest: what the file does not tell about itself, or the path of a .toml or .json file.
        replace: replace a model of that name.
        server_path: path below the server's model repository (`net/1/model.onnx`, or `net` for
            its newest version); None for the entry called `name`. Only without `source`.
        timeout: seconds; None for the client's own.

    Raises:
        InvalidRequest: the file is corrupt or of another format, or the manifest is wrong.
        FailedPrecondition: the file is sound but cannot be served exactly.
        AlreadyExists: the name is taken and `replace` is false.
    """
    manifest_json = codec.encode_manifest(manifest)
    if source is None:
        request = models_api.LoadModelRequest(
            name=name, path=server_path or "", manifest_json=manifest_json, replace=replace
        )
        return Call("ModelService.LoadModel", request, parse.answered_model, timeout=timeout)
    if server_path is not None:
        raise InvalidRequest.field("server_path", "give source or server_path, not both")
    size, sha256 = _measure(source)
    header = models_api.UploadHeader(
        name=name, manifest_json=manifest_json, replace=replace, size=size, sha256=sha256
    )
    messages = partial(_upload, header, source)
    return Call("ModelService.UploadModel", messages, parse.answered_model, timeout=timeout)


def _chunks(source: str | PathLike[str] | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes | bytearray | memoryview):
        for start in range(0, len(source), CHUNK_BYTES):
            yield bytes(source[start : start + CHUNK_BYTES])
        return
    with Path(source).open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _measure(source: str | PathLike[str] | bytes) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(source):
        digest.update(chunk)
        size += len(chunk)
    if not size:
        raise InvalidRequest.field("source", "the model file is empty")
    return size, digest.hexdigest()


def _upload(
    header: models_api.UploadHeader, source: str | PathLike[str] | bytes
) -> Iterator[Message]:
    yield models_api.UploadModelRequest(header=header)
    for chunk in _chunks(source):
        yield models_api.UploadModelRequest(chunk=chunk)


def unload_model(name: str) -> Call[None]:
    """Forget a model once the calls that run on it are done. Raises NotFound."""
    request = models_api.UnloadModelRequest(name=name)
    return Call("ModelService.UnloadModel", request, parse.nothing)


def models() -> Call[tuple[ModelInfo, ...]]:
    """Every loaded model."""
    return Call("ModelService.ListModels", models_api.ListModelsRequest(), parse.models, retry=True)


def model(name: str) -> Call[ModelInfo]:
    """One loaded model. Raises NotFound."""
    request = models_api.GetModelRequest(name=name)
    return Call("ModelService.GetModel", request, parse.answered_model, retry=True)


def plugins(kind: str | None = None) -> Call[tuple[PluginInfo, ...]]:
    """Every plugin, or those of a kind (`attribution`, `synthesis`, `attack`, ...)."""
    request = plugins_api.ListPluginsRequest(kind=kind or "")
    return Call("PluginService.ListPlugins", request, parse.plugins, retry=True)


def plugin(name: str) -> Call[PluginInfo]:
    """One plugin, with the JSON schema of its parameters. Raises NotFound."""
    request = plugins_api.GetPluginRequest(name=name)
    return Call("PluginService.GetPlugin", request, parse.answered_plugin, retry=True)


def predict(
    name: str, inputs: Any, *, priority: str | None = None, timeout: float | None = None
) -> Call[Predictions]:
    """Logits and probabilities of N inputs.

    Args:
        name: a loaded model.
        inputs: `(N, *input_shape)` in the model's bounds (anything that numpy can read, torch
            tensors included), a dictionary of them for a model of several inputs, paths or
            bytes of encoded images (JPEG, PNG), one per row, or a `DataSet` on the server.
        priority: as for `run`.
        timeout: seconds; None for the client's own.
    """
    content = Content(inputs)
    request = models_api.PredictRequest(model=name, priority=codec.encode_priority(priority))
    content.fill_inputs(request.inputs)
    return content.call(
        "ModelService.Predict", request, parse.predictions, retry=True, timeout=timeout
    )


def gradient(
    name: str,
    inputs: Any,
    grad_outputs: Any,
    *,
    priority: str | None = None,
    timeout: float | None = None,
) -> Call[Gradient]:
    """The vector-Jacobian product: the gradient of `sum(grad_outputs * logits)` by the inputs.

    Args:
        name: a loaded model.
        inputs: as for `predict`.
        grad_outputs: `(N, K)`.
        priority: as for `run`.
        timeout: seconds; None for the client's own.

    Raises:
        FailedPrecondition: the model cannot be differentiated.
    """
    content = Content(inputs, {"grad_outputs": grad_outputs})
    request = models_api.ComputeGradientRequest(
        model=name, priority=codec.encode_priority(priority)
    )
    content.fill_inputs(request.inputs)
    content.fill_tensor("grad_outputs", request.grad_outputs)
    return content.call(
        "ModelService.ComputeGradient", request, parse.gradient, retry=True, timeout=timeout
    )


def activations(
    name: str,
    inputs: Any,
    layers: Sequence[str],
    *,
    priority: str | None = None,
    timeout: float | None = None,
) -> Call[dict[str, Array]]:
    """Values of layers, name -> `(N, *layer_shape)`.

    Args:
        name: a loaded model.
        inputs: as for `predict`.
        layers: names of layers, as `model(name).layers` lists them.
        priority: as for `run`.
        timeout: seconds; None for the client's own.
    """
    content = Content(inputs, any_size=True)
    request = models_api.ComputeActivationsRequest(
        model=name,
        layers=[layers] if isinstance(layers, str) else layers,
        priority=codec.encode_priority(priority),
    )
    content.fill_inputs(request.inputs)
    return content.call(
        "ModelService.ComputeActivations", request, parse.activations, retry=True, timeout=timeout
    )


def _fill_run(
    request: interpret.RunRequest,
    plugin: str,
    model: str,
    inputs: Any,
    target: Any,
    params: Mapping[str, Any] | None,
    seed: int | Sequence[int] | None,
    tensors: Mapping[str, Any] | None,
    models: Mapping[str, str] | None,
    render: Choice,
    half: bool,
    priority: str | None,
    *,
    copied: bool = False,
) -> Content:
    tensors = tensors or {}
    fields = {f"tensors.{name}": tensor for name, tensor in tensors.items()}
    rendering = read_rendering(render)
    pictures = 0 if rendering is None else len(rendering.styles)
    content = Content(inputs, fields, any_size=inputs is None, copied=copied, pictures=pictures)
    request.model, request.plugin = model, plugin
    request.params_json = codec.encode_params(params)
    request.targets.extend(codec.encode_targets(target, content.parts))
    request.seeds.extend(codec.encode_seeds(seed))
    request.models.update(codec.encode_models(models))
    request.render = rendering is not None
    if (message := encode_rendering(rendering)) is not None:
        request.rendering.CopyFrom(message)
    request.half_precision = half
    request.priority = codec.encode_priority(priority)
    content.fill_inputs(request.inputs)
    for name in tensors:
        content.fill_tensor(f"tensors.{name}", request.tensors[name])
    return content


def run(
    plugin: str,
    model: str,
    inputs: Any = None,
    *,
    target: Any = None,
    params: Mapping[str, Any] | None = None,
    seed: int | Sequence[int] | None = None,
    tensors: Mapping[str, Any] | None = None,
    models: Mapping[str, str] | None = None,
    render: Choice = False,
    half: bool = False,
    priority: str | None = None,
    timeout: float | None = None,
) -> Call[Result]:
    """Run a plugin on a model and wait for its result.

    Args:
        plugin: a plugin, as `plugins()` lists them.
        model: a loaded model.
        inputs: as for `predict`; None for synthesis from nothing.
        target: what to explain or to reach, one for all rows or a sequence with one per row: a
            class (int); `{"layer": "features.3", "channel": 17}`; `{"layer": ..., "neuron":
            [c, i, j]}`; `{"layer": ...}` for the mean of a layer; `{"layer": ..., "direction":
            array}`. None for the predicted class.
        params: the plugin's parameters; its schema is `plugin(name).schema`.
        seed: one for all rows (row i gets seed + i) or one per row; None lets the server draw.
        tensors: auxiliary tensors that the plugin declares, by name, one row per input row.
        models: second models that the plugin declares: role -> name of a loaded model.
        render: also draw the result as PNG: True, a style (`heatmap`, `signed`, `overlay`,
            `top_k`, `object_mask`), several, or a mapping of options such as `{"style": "overlay",
            "alpha": 0.6}`; `interpret_client.pictures.Rendering` tells them all.
        half: fetch floating-point tensors as float16.
        priority: `low` for batch work, `normal` or `high`: whose work goes first where calls wait.
        timeout: seconds; None for the client's own.

    Raises:
        InvalidRequest: `violations` names the fields that are wrong.
        NotFound: no such model, plugin or layer.
        FailedPrecondition: the model lacks a capability that the plugin requires.
        Overloaded, Cancelled, DeadlineExceeded, Unavailable, ServerError.
    """
    request = interpret.RunRequest()
    content = _fill_run(
        request,
        plugin,
        model,
        inputs,
        target,
        params,
        seed,
        tensors,
        models,
        render,
        half,
        priority,
    )
    return content.call("InterpretService.Run", request, parse.ran, retry=True, timeout=timeout)


def stream(
    plugin: str,
    model: str,
    inputs: Any = None,
    *,
    target: Any = None,
    params: Mapping[str, Any] | None = None,
    seed: int | Sequence[int] | None = None,
    tensors: Mapping[str, Any] | None = None,
    models: Mapping[str, str] | None = None,
    render: Choice = False,
    half: bool = False,
    previews: bool = True,
    priority: str | None = None,
    timeout: float | None = None,
) -> Call[Event]:
    """Run a plugin on a model and follow it: progress and previews, then exactly one result.

    Closing the stream, or leaving its `with` block, cancels the call.

    Args:
        plugin, model, inputs, target, params, seed, tensors, models, render, half, priority,
            timeout: as for `run`.
        previews: also send intermediate images.

    Raises:
        as `run`, while the stream is read.
    """
    request = interpret.RunStreamRequest(previews=previews)
    content = _fill_run(
        request.request,
        plugin,
        model,
        inputs,
        target,
        params,
        seed,
        tensors,
        models,
        render,
        half,
        priority,
        copied=True,
    )
    return content.call("InterpretService.RunStream", request, parse.event, timeout=timeout)
