"""What the calls that run on a model ask of a worker, and what they answer."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import model_service_pb2 as models

from ..engine.api import Call, Result
from ..errors import InvalidRequest
from . import codec
from .callers import client_of, to_priority
from .calls import PREDICT
from .parts import Incoming, Outgoing
from .plugin_service import unknown_plugin


@dataclass(frozen=True)
class Method:
    """One of the calls.

    Args:
        to_call: from the request, the context and the parts, where a chunked call has them.
        to_answer: from the request, the result (an event, where the answers are a stream) and the
            parts of the answer, where a chunked call may have them.
        fields: a field of the call -> what the request calls it.
        streams: whether every event is answered, not the result alone.
    """

    to_call: Callable[[Any, Any, Incoming | None], Call]
    to_answer: Callable[[Any, Any, Outgoing | None], Any]
    fields: Mapping[str, str] = field(default_factory=dict)
    streams: bool = False


def _run(
    request: runs.RunRequest,
    context: Any,
    parts: Incoming | None,
    *,
    previews: bool = False,
    progress: bool = False,
) -> Call:
    if request.plugin.startswith("_"):
        raise unknown_plugin(request.plugin)
    return codec.to_call(
        request,
        parts=parts,
        previews=previews,
        progress=progress,
        timeout=codec.to_timeout(context.time_remaining()),
        client=client_of(context),
        priority=to_priority(request.priority),
    )


def _ran(request: runs.RunRequest, result: Result, parts: Outgoing | None) -> runs.RunResponse:
    response = runs.RunResponse()
    codec.from_result(result, response.result, parts)
    return response


def _run_stream(request: runs.RunStreamRequest, context: Any, parts: Incoming | None) -> Call:
    return _run(request.request, context, parts, previews=request.previews, progress=True)


def _evaluate(
    request: Any, context: Any, parts: Incoming | None, primitive: str, **extra: Any
) -> Call:
    return codec.make_call(
        model=codec.required(request.model, "model", "a loaded model; ListModels lists them"),
        plugin=primitive,
        inputs=codec.required_inputs(request, parts),
        timeout=codec.to_timeout(context.time_remaining()),
        client=client_of(context),
        priority=to_priority(request.priority),
        progress=False,
        **extra,
    )


def _predict(request: models.PredictRequest, context: Any, parts: Incoming | None) -> Call:
    return _evaluate(request, context, parts, PREDICT)


def _predicted(
    request: models.PredictRequest, result: Result, parts: Outgoing | None
) -> models.PredictResponse:
    response = models.PredictResponse(predictions=map(codec.from_prediction, result.before))
    codec.from_array(result.tensors["logits"], response.logits, parts)
    codec.from_array(result.tensors["probabilities"], response.probabilities, parts)
    return response


def _differentiate(
    request: models.ComputeGradientRequest, context: Any, parts: Incoming | None
) -> Call:
    if not request.HasField("grad_outputs"):
        raise InvalidRequest.field(
            "grad_outputs", "give the cotangent of the logits, one row per input row"
        )
    cotangent = codec.to_array(request.grad_outputs, "grad_outputs", parts)
    return _evaluate(request, context, parts, "_gradient", tensors={"grad_outputs": cotangent})


def _differentiated(
    request: models.ComputeGradientRequest, result: Result, parts: Outgoing | None
) -> models.ComputeGradientResponse:
    response = models.ComputeGradientResponse()
    for name, array in result.tensors.items():
        output, _, part = name.partition(".")
        if output == "gradient":
            tensor = response.gradients[part] if part else response.gradient
            codec.from_array(array, tensor, parts)
    codec.from_array(result.tensors["logits"], response.logits, parts)
    return response


def _activate(
    request: models.ComputeActivationsRequest, context: Any, parts: Incoming | None
) -> Call:
    if not request.layers:
        raise InvalidRequest.field("layers", "name at least one layer; GetModel lists them")
    params = json.dumps({"layers": list(request.layers)})
    return _evaluate(request, context, parts, "_activations", params=params)


def _activated(
    request: models.ComputeActivationsRequest, result: Result, parts: Outgoing | None
) -> models.ComputeActivationsResponse:
    response = models.ComputeActivationsResponse()
    for name in dict.fromkeys(request.layers):
        codec.from_array(result.tensors[name], response.activations[name], parts)
    return response


# By the name of the field that holds the request in a chunked call.
METHODS: Mapping[str, Method] = {
    "run": Method(_run, _ran),
    "run_stream": Method(
        _run_stream, lambda _, event, parts: codec.from_event(event, parts), streams=True
    ),
    "predict": Method(_predict, _predicted),
    "compute_gradient": Method(
        _differentiate, _differentiated, {"tensors.grad_outputs": "grad_outputs"}
    ),
    "compute_activations": Method(
        _activate, _activated, {"layer": "layers", "params.layers": "layers"}
    ),
}
