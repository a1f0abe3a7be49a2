"""Protobuf answers to the client's results."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from interpret_api.v1 import interpret_service_pb2 as interpret
from interpret_api.v1 import model_service_pb2 as models_api
from interpret_api.v1 import plugin_service_pb2 as plugins_api
from interpret_api.v1 import types_pb2 as types

from . import results
from ._chunks import Part
from ._codec import decode_target, decode_tensor, decode_tensors
from .errors import ServerError


def nothing(answer: Any) -> None:
    """The answer says nothing."""


def _json(text: str) -> Mapping[str, Any]:
    value = json.loads(text) if text else {}
    if not isinstance(value, dict):
        raise ServerError("the server sent JSON that is no object")
    return value


def _model(message: models_api.Model) -> results.ModelInfo:
    verification = message.verification
    return results.ModelInfo(
        name=message.name,
        version=message.version,
        format=message.format,
        form=message.form,
        form_reason=message.form_reason,
        sha256=message.sha256,
        size=message.size,
        device=message.device,
        precision=message.precision,
        input_name=message.input_name,
        output_name=message.output_name,
        input_shape=tuple(message.input_shape),
        input_dtype=message.input_dtype,
        input_layout=message.input_layout,
        bounds=_bounds(message),
        classes=message.classes,
        labels=tuple(message.labels),
        logits_from=message.logits_from,
        layers=tuple(
            results.Layer(layer.name, layer.kind, tuple(layer.shape)) for layer in message.layers
        ),
        capabilities=frozenset(message.capabilities),
        lacking=dict(sorted(message.lacking.items())),
        verification=results.Verification(
            verification.reference,
            verification.max_difference,
            verification.relative_difference,
            tuple(verification.batch_sizes),
            verification.inputs,
        ),
        notes=tuple(message.notes),
        manifest=_json(message.manifest_json),
        max_batch=message.max_batch,
        inputs=tuple(
            results.ModelInput(
                name=item.name,
                kind=item.kind,
                shape=tuple(item.shape),
                dtype=item.dtype,
                layout=item.layout,
                bounds=_bounds(item),
                limit=item.limit or None,
                integers=item.integers,
                features=tuple(item.features),
            )
            for item in message.inputs
        ),
        explained_shape=tuple(message.explained_shape),
    )


def _bounds(message: models_api.Model | models_api.ModelInput) -> tuple[float, float] | None:
    if not message.HasField("bounds"):
        return None
    return message.bounds.lower, message.bounds.upper


def answered_model(answer: Any) -> results.ModelInfo:
    """The answer's one model."""
    return _model(answer.model)


def models(answer: models_api.ListModelsResponse) -> tuple[results.ModelInfo, ...]:
    """The answer's models."""
    return tuple(_model(message) for message in answer.models)


def _plugin(message: plugins_api.Plugin) -> results.PluginInfo:
    return results.PluginInfo(
        name=message.name,
        kind=message.kind,
        api=message.api,
        version=message.version,
        distribution=message.distribution,
        summary=message.summary,
        description=message.description,
        requires=frozenset(message.requires),
        rows=message.rows,
        inputs=message.inputs,
        target_kinds=frozenset(message.target_kinds),
        schema=_json(message.params_schema_json),
        results=tuple(
            results.ResultField(item.name, item.role, item.description)
            for item in message.result_fields
        ),
        tensors=tuple(
            results.AuxTensor(item.name, item.description, item.like_input, item.required)
            for item in message.tensors
        ),
        models=tuple(
            results.ModelRole(
                item.name,
                item.description,
                frozenset(item.requires),
                item.required,
                item.same_inputs,
                item.output,
            )
            for item in message.models
        ),
    )


def answered_plugin(answer: plugins_api.GetPluginResponse) -> results.PluginInfo:
    """The answer's one plugin."""
    return _plugin(answer.plugin)


def plugins(answer: plugins_api.ListPluginsResponse) -> tuple[results.PluginInfo, ...]:
    """The answer's plugins."""
    return tuple(_plugin(message) for message in answer.plugins)


def _predictions(messages: Iterable[types.Prediction]) -> tuple[results.Prediction, ...]:
    return tuple(
        results.Prediction(
            tuple(message.classes),
            tuple(message.probabilities),
            tuple(message.logits),
            tuple(message.labels),
        )
        for message in messages
    )


def predictions(
    answer: models_api.PredictResponse, parts: Sequence[Part] = ()
) -> results.Predictions:
    """Logits, probabilities and the most probable classes."""
    return results.Predictions(
        decode_tensor(answer.logits, "logits", parts),
        decode_tensor(answer.probabilities, "probabilities", parts),
        _predictions(answer.predictions),
    )


def gradient(
    answer: models_api.ComputeGradientResponse, parts: Sequence[Part] = ()
) -> results.Gradient:
    """The gradient and the logits."""
    several = decode_tensors(answer.gradients, parts)
    return results.Gradient(
        None if several else decode_tensor(answer.gradient, "gradient", parts),
        decode_tensor(answer.logits, "logits", parts),
        several,
    )


def activations(
    answer: models_api.ComputeActivationsResponse, parts: Sequence[Part] = ()
) -> dict[str, results.Array]:
    """The layers' values."""
    return decode_tensors(answer.activations, parts)


def ran(answer: interpret.RunResponse, parts: Sequence[Part] = ()) -> results.Result:
    """The answer's result."""
    return _result(answer.result, parts)


def event(message: interpret.RunStreamResponse, parts: Sequence[Part] = ()) -> results.Event:
    """One event of a stream."""
    match message.WhichOneof("event"):
        case "progress":
            progress = results.Progress(message.progress.done, message.progress.total)
            return results.Event(progress=progress)
        case "preview":
            preview = results.Preview(
                message.preview.done,
                message.preview.total,
                decode_tensors(message.preview.tensors, parts),
                _pictures(message.preview.pictures, parts),
            )
            return results.Event(preview=preview)
        case "result":
            return results.Event(result=_result(message.result, parts))
        case _:
            raise ServerError("the server sent an event that this client does not know")


def _pictures(
    pictures: Mapping[str, interpret.Pictures], parts: Sequence[Part]
) -> dict[str, tuple[bytes, ...]]:
    return {name: _files(pictures[name], parts) for name in sorted(pictures)}


def _files(message: interpret.Pictures, parts: Sequence[Part]) -> tuple[bytes, ...]:
    if max(message.parts, default=0) > len(parts) or 0 in message.parts:
        raise ServerError("the server did not send the bytes of its pictures")
    return tuple(message.png) or tuple(parts[part - 1].tobytes() for part in message.parts)


def _result(message: interpret.Result, parts: Sequence[Part]) -> results.Result:
    return results.Result(
        tensors=decode_tensors(message.tensors, parts),
        metrics={
            name: np.array(message.metrics[name].values, dtype=np.float64)
            for name in sorted(message.metrics)
        },
        before=_predictions(message.predictions_before),
        after=_predictions(message.predictions_after),
        warnings=tuple(
            results.RowWarning(item.message, tuple(item.rows)) for item in message.warnings
        ),
        pictures=_pictures(message.pictures, parts),
        provenance=_provenance(message.provenance, parts),
    )


def _provenance(message: interpret.Provenance, parts: Sequence[Part]) -> results.Provenance:
    return results.Provenance(
        model=message.model,
        model_sha256=message.model_sha256,
        model_version=message.model_version,
        plugin=message.plugin,
        plugin_version=message.plugin_version,
        server_version=message.server_version,
        params=_json(message.params_json),
        targets=tuple(decode_target(target, parts) for target in message.targets),
        seeds=tuple(message.seeds),
        device=message.device,
        precision=message.precision,
        queue_seconds=message.queue_seconds,
        run_seconds=message.run_seconds,
        batch_rows=message.batch_rows,
        models=tuple(
            results.SecondModel(item.role, item.model, item.model_sha256, item.model_version)
            for item in message.models
        ),
    )
