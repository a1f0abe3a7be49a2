"""`ModelService`: loads models and evaluates them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

from interpret_api.v1 import model_service_pb2 as pb
from interpret_api.v1 import model_service_pb2_grpc

from ..engine.api import ModelInfo
from ..errors import FailedPrecondition
from ..models.manifest import manifest_from_json
from ..models.repository import resolve
from . import codec
from .calls import result_of
from .descriptions import from_model
from .methods import METHODS
from .names import Names
from .upload import already_loaded, receive


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Hands models and calls to the worker.

    Args:
        worker: holds the models.
        repository: folder that `LoadModel` loads from, or None.
        max_upload_bytes: largest model file that `UploadModel` takes.
    """

    def __init__(self, worker: Names, repository: Path | None, max_upload_bytes: int) -> None:
        self._worker, self._repository = worker, repository
        self._max_upload_bytes = max_upload_bytes

    async def LoadModel(self, request: pb.LoadModelRequest, context: Any) -> pb.LoadModelResponse:
        """Load a model of the repository."""
        name = codec.model_name(request.name)
        if self._repository is None:
            raise FailedPrecondition(
                "the server has no model repository; start it with --model-repository, or send "
                "the file with UploadModel"
            )
        if name in self._names() and not request.replace:
            raise already_loaded(name)
        manifest = manifest_from_json(request.manifest_json) if request.manifest_json else None
        entry = await asyncio.to_thread(resolve, self._repository, request.path or name)
        info = await self._worker.load(
            name,
            entry.path,
            entry.manifest if manifest is None else manifest,
            replace=request.replace,
            samples=entry.samples,
        )
        return pb.LoadModelResponse(model=from_model(info))

    async def UploadModel(
        self, requests: AsyncIterator[pb.UploadModelRequest], context: Any
    ) -> pb.UploadModelResponse:
        """Load a model that the client sends; its file is gone when the call ends."""
        async with receive(requests, self._names(), self._max_upload_bytes) as upload:
            info = await self._worker.load(
                upload.name, upload.path, upload.manifest, replace=upload.replace
            )
        return pb.UploadModelResponse(model=from_model(info))

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Any
    ) -> pb.UnloadModelResponse:
        """Forget a model once the calls that run on it are done."""
        await self._worker.unload(self._model(request.name).name)
        return pb.UnloadModelResponse()

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """What is known of one model."""
        await self._worker.arrive(request.name)
        return pb.GetModelResponse(model=from_model(self._model(request.name)))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        """What is known of every model."""
        return pb.ListModelsResponse(models=map(from_model, self._worker.models()))

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        """Logits, probabilities and the most probable classes."""
        return cast(pb.PredictResponse, await self._evaluate("predict", request, context))

    async def ComputeGradient(
        self, request: pb.ComputeGradientRequest, context: Any
    ) -> pb.ComputeGradientResponse:
        """The vector-Jacobian product of the logits."""
        answer = await self._evaluate("compute_gradient", request, context)
        return cast(pb.ComputeGradientResponse, answer)

    async def ComputeActivations(
        self, request: pb.ComputeActivationsRequest, context: Any
    ) -> pb.ComputeActivationsResponse:
        """Values of layers."""
        answer = await self._evaluate("compute_activations", request, context)
        return cast(pb.ComputeActivationsResponse, answer)

    async def _evaluate(self, method_name: str, request: Any, context: Any) -> Any:
        method = METHODS[method_name]
        call = method.to_call(request, context, None)
        result = await result_of(self._worker, call, method.fields)
        return method.to_answer(request, result, None)

    def _names(self) -> frozenset[str]:
        return frozenset(info.name for info in self._worker.models())

    def _model(self, name: str) -> ModelInfo:
        return self._worker.find(
            codec.required(name, "name", "a loaded model; ListModels lists them")
        )
