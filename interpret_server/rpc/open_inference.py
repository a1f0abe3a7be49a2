"""`inference.GRPCInferenceService`: predictions for clients of the Open Inference Protocol."""

from collections.abc import Callable
from typing import Any

from interpret_api.open_inference import grpc_predict_v2_pb2 as pb
from interpret_api.open_inference import grpc_predict_v2_pb2_grpc

from .. import __version__
from ..engine.api import Call
from ..errors import NotFound
from . import codec
from . import open_inference_codec as inference
from .callers import client_of
from .calls import PREDICT, result_of
from .names import Names

OUTPUTS = ("logits", "probabilities")


class OpenInferenceServicer(grpc_predict_v2_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves every model's `logits` and `probabilities`, both `(N, K)`.

    Args:
        worker: holds the models.
        ready: whether the server takes requests.
    """

    def __init__(self, worker: Names, ready: Callable[[], bool]) -> None:
        self._worker, self._ready = worker, ready

    async def ServerLive(self, request: Any, context: Any) -> pb.ServerLiveResponse:
        """True: the server answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> pb.ServerReadyResponse:
        """Whether the start-up is over and no shutdown has begun."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Any
    ) -> pb.ModelReadyResponse:
        """Whether a model is loaded, in the version that is named."""
        try:
            self._worker.find(request.name, request.version)
        except NotFound:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: Any, context: Any) -> pb.ServerMetadataResponse:
        """Name and version; no extensions."""
        return pb.ServerMetadataResponse(name="interpret-server", version=__version__)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Any
    ) -> pb.ModelMetadataResponse:
        """The input and the outputs of a model. Raises NotFound."""
        await self._worker.arrive(request.name, request.version)
        info = self._worker.find(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=self._worker.versions(request.name),
            platform=f"interpret_{info.format}",
            inputs=[
                pb.ModelMetadataResponse.TensorMetadata(
                    name=item.name,
                    datatype=inference.datatype_of(item.dtype),
                    shape=(-1, *item.shape),
                )
                for item in info.inputs
            ],
            outputs=[
                pb.ModelMetadataResponse.TensorMetadata(
                    name=name,
                    datatype=inference.datatype_of(_output_type(info.precision)),
                    shape=(-1, info.classes),
                )
                for name in OUTPUTS
            ],
        )

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Any
    ) -> pb.ModelInferResponse:
        """Logits and probabilities, as raw contents where the request uses those, else typed."""
        name = codec.required(request.model_name, "model_name", "a loaded model")
        await self._worker.arrive(name, request.model_version)
        info = self._worker.find(name, request.model_version)
        wanted = inference.wanted_outputs(request, OUTPUTS)
        arrays = inference.to_arrays(request, [item.name for item in info.inputs])
        call = Call(
            model=info.name,
            plugin=PREDICT,
            inputs=arrays if len(arrays) > 1 else arrays[info.input_name],
            timeout=codec.to_timeout(context.time_remaining()),
            client=client_of(context),
        )
        result = await result_of(self._worker, call)
        response = pb.ModelInferResponse(model_name=name, model_version=info.version, id=request.id)
        # Contents are all raw or all typed; 16-bit floats have no typed form.
        typed = all(result.tensors[output].dtype not in inference.RAW_ONLY for output in wanted)
        raw = bool(request.raw_input_contents) or not typed
        for output in wanted:
            inference.add_output(response, output, result.tensors[output], raw=raw)
        return response


def _output_type(precision: str) -> str:
    """Of logits and probabilities, whatever the products in between are rounded to."""
    return "float64" if precision == "float64" else "float32"
