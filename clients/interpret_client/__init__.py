"""Client for an interpret server: explain, visualise and attack served classifiers.

    with interpret_client.connect("localhost:50051") as client:
        client.load_model("net", "net.onnx", manifest={"bounds": [0, 1]})
        result = client.run("saliency", "net", inputs, target=3)
        result.tensors["attributions"]

`client.audit(...)` finds out how robust a model is. `interpret_client.aio` is the same,
asynchronous; `interpret_client.torch` makes a served model a torch module;
`interpret_client.pictures` draws what came back. Importing this package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._audit_run import AuditRun
from ._sync import Client, EventStream, connect
from .audits import Audit, AuditOrigin, AuditPlan, AuditStep
from .errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InterpretClientError,
    InvalidRequest,
    MessageTooLarge,
    NotFound,
    Overloaded,
    PermissionDenied,
    ServerError,
    Unauthenticated,
    Unavailable,
    Violation,
)
from .results import (
    AuxTensor,
    DataSet,
    Event,
    Gradient,
    Layer,
    ModelInfo,
    ModelInput,
    ModelRole,
    PluginInfo,
    Prediction,
    Predictions,
    Preview,
    Progress,
    Provenance,
    Result,
    ResultField,
    RowWarning,
    SecondModel,
    Verification,
)

if TYPE_CHECKING:
    from . import aio as aio
    from . import pictures as pictures
    from . import torch as torch

__all__ = [
    "AlreadyExists",
    "Audit",
    "AuditOrigin",
    "AuditPlan",
    "AuditRun",
    "AuditStep",
    "AuxTensor",
    "Cancelled",
    "Client",
    "DataSet",
    "DeadlineExceeded",
    "Event",
    "EventStream",
    "FailedPrecondition",
    "Gradient",
    "InterpretClientError",
    "InvalidRequest",
    "Layer",
    "MessageTooLarge",
    "ModelInfo",
    "ModelInput",
    "ModelRole",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "PluginInfo",
    "Prediction",
    "Predictions",
    "Preview",
    "Progress",
    "Provenance",
    "Result",
    "ResultField",
    "RowWarning",
    "SecondModel",
    "ServerError",
    "Unauthenticated",
    "Unavailable",
    "Verification",
    "Violation",
    "connect",
]

_LAZY = ("aio", "pictures", "torch")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_LAZY]
