"""What runs an original file, forward only: onnxruntime, or else the standard's own evaluator."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

from ...errors import FailedPrecondition, InvalidModel, InvalidRequest
from .class_names import NamedOutput, as_numbers, named_outputs
from .file import all_nodes, header, load
from .inference import to_inference

_DTYPES: dict[str, torch.dtype] = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int8)": torch.int8,
    "tensor(int16)": torch.int16,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(uint8)": torch.uint8,
    "tensor(uint16)": torch.uint16,
    "tensor(bool)": torch.bool,
}
_FATAL_ONLY = 4
_BFLOAT16 = TensorProto.BFLOAT16
_LARGEST_MESSAGE = 2 * 2**30 - 2**20  # what protobuf takes, less some
_LARGE_WEIGHT = 2**12
_LARGEST_REFERENCE = 128 * 2**20
_MOST_REFERENCE_NODES = 2000
_LONGEST_REFERENCE = 5.0  # seconds for one row


class Lacking(InvalidModel):
    """The file is sound, but what runs it lacks an operator, or one of the file's data types."""


class Runtime(ABC):
    """Something that runs an ONNX file forward.

    Attributes:
        input_names: in the file's order.
        input_shapes: all axes of each input; None where the file leaves a size open.
        input_dtypes: of each input; others are converted on the way in.
        output_names: of the outputs that are tensors, or lists of class scores.
        named: what the file tells of its outputs' classes; winners come as their positions.
        trained: the nodes that the file has in training mode; they run in their inference form.
    """

    executor: ClassVar[str]
    trained: tuple[str, ...] = ()
    named: Mapping[str, NamedOutput] = {}
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int | None, ...], ...]
    input_dtypes: tuple[torch.dtype, ...]
    output_names: tuple[str, ...]

    @property
    def batch(self) -> int | None:
        """The batch size that the file fixes, or None."""
        return next((shape[0] for shape in self.input_shapes if shape and shape[0]), None)

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs named by `output_names` for inputs in order, each `(N, ...)`.

        Where the file fixes the batch size, the rows are run in batches of that size, the last one
        filled up with copies of its last row.

        Raises:
            Lacking: an operator is missing.
            InvalidRequest: the inputs are refused, or fail.
        """
        if len(inputs) != len(self.input_names):
            raise InvalidRequest.field(
                "inputs", f"the model takes {len(self.input_names)} inputs, not {len(inputs)}"
            )
        batch, rows = self.batch, len(inputs[0]) if inputs and inputs[0].dim() else 0
        if batch is None or rows in (0, batch):
            return self._run(inputs)
        parts: list[list[Tensor]] = []
        for start in range(0, rows, batch):
            chunk = [value[start : start + batch] for value in inputs]
            missing = batch - len(chunk[0])
            filled = [
                torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) for part in chunk
            ]
            parts.append([value[: batch - missing] for value in self._run(filled)])
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        feeds = {
            name: _to_array(value, dtype)
            for name, value, dtype in zip(self.input_names, inputs, self.input_dtypes, strict=True)
        }
        values = _guard(
            lambda: self._outputs(feeds),
            InvalidRequest(f"inputs: {self.executor} cannot run the model on inputs of this shape"),
        )
        return [_to_tensor(value) for value in values]

    @abstractmethod
    def _outputs(self, feeds: dict[str, Any]) -> Sequence[Any]:
        """The outputs for arrays by name."""


class OnnxRuntime(Runtime):
    """A session of onnxruntime on the CPU."""

    executor = "onnxruntime"

    def __init__(self, session: Any) -> None:
        self._session = session
        inputs = session.get_inputs()
        self.input_names = tuple(item.name for item in inputs)
        self.input_shapes = tuple(
            tuple(axis if isinstance(axis, int) and axis >= 0 else None for axis in item.shape)
            for item in inputs
        )
        self.input_dtypes = tuple(_DTYPES.get(item.type, torch.float32) for item in inputs)
        outputs = session.get_outputs()
        self.output_names = tuple(
            item.name
            for item in outputs
            if item.type in (*_DTYPES, "tensor(string)") or item.type.startswith("seq(map")
        )

    def _outputs(self, feeds: dict[str, Any]) -> Sequence[Any]:
        try:
            values: Sequence[Any] = self._session.run(list(self.output_names), feeds)
        except Exception as error:
            if any(word in str(error) for word in ("not support", "NOT_IMPLEMENTED")):
                raise Lacking(f"model: {self.executor} lacks an operator of the file") from error
            raise
        return [
            as_numbers(value, self.named.get(name))
            for name, value in zip(self.output_names, values, strict=True)
        ]


class Reference(Runtime):
    """The onnx package's own evaluator: slow, and of every version of the standard."""

    executor = "onnx.reference"

    def __init__(self, model: ModelProto) -> None:
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(model, new_ops=_corrections(model))
        told = header(model)
        self.input_names = tuple(item.name for item in told.inputs)
        self.input_shapes = tuple(item.shape or () for item in told.inputs)
        self.input_dtypes = tuple(item.dtype or torch.float32 for item in told.inputs)
        self.output_names = tuple(item.name for item in told.outputs if item.dtype is not None)

    def _outputs(self, feeds: dict[str, Any]) -> Sequence[Any]:
        with np.errstate(all="ignore"):
            values: Any = self._evaluator.run(list(self.output_names), feeds)
        return cast(Sequence[Any], values)


def _corrections(model: ModelProto) -> list[Any]:
    """Operators of old opsets that the evaluator gets wrong: it trains on each batch it normalises.

    Up to opset 13, batch normalisation is in training mode only where it has five outputs.
    """
    from onnx.reference.op_run import OpRun

    class BatchNormalization(OpRun):
        op_domain = ""

        def _run(
            self, x: Any, scale: Any, bias: Any, mean: Any, var: Any, epsilon: float, **_: Any
        ) -> tuple[Any, ...]:
            shape = (-1, *(1,) * (x.ndim - 2))
            scale, bias, mean, var = (item.reshape(shape) for item in (scale, bias, mean, var))
            return ((scale * (x - mean) / np.sqrt(var + epsilon) + bias).astype(x.dtype),)

    opsets = (item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    normalised = [n for n in all_nodes(model) if n.op_type == "BatchNormalization"]
    plain = all(len(node.output) == 1 for node in normalised)
    return [BatchNormalization] if max(opsets, default=0) < 14 and plain else []


def runtime(path: Path, *, threads: int = 1, also: Sequence[str] = ()) -> OnnxRuntime:
    """A session of onnxruntime for a file, on the CPU.

    It is given the file's bytes after they were checked, and those of the files beside it; it
    opens nothing itself. A file in training mode runs in its inference form.

    Args:
        path: of the file.
        threads: that one operator may use.
        also: values to give as further outputs.

    Raises:
        FailedPrecondition: onnxruntime is not installed.
        InvalidModel: the file is corrupt, unsafe, or onnxruntime does not run it.
    """
    # From 1.29 on, it reports on models to its maker, and starts a thread for that on import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise FailedPrecondition(
            "onnxruntime is not installed; install interpret-server[cpu], or interpret-server[gpu] "
            "on a machine with CUDA"
        ) from error
    model = load(path)
    trained = to_inference(model)
    model.graph.output.extend(ValueInfoProto(name=name) for name in also)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _FATAL_ONLY
    # By default, activations that meet 4-bit weights are rounded to 8 bits; the file says no such
    # thing.
    if any(tensor.data_type == TensorProto.DOUBLE for tensor in model.graph.initializer):
        # Beyond this level, operators are fused into ones whose scales are float32.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    held = _detach_weights(model) if model.ByteSize() > _LARGEST_MESSAGE else {}
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in held.values()]
    options.add_external_initializers(list(held), values)
    session = cast(
        OnnxRuntime,
        _guard(
            lambda: OnnxRuntime(
                onnxruntime.InferenceSession(
                    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            ),
            InvalidModel("model: onnxruntime cannot load the file"),
        ),
    )
    session.trained, session.named = trained, named_outputs(model)
    return session


def reference(path: Path) -> Reference:
    """The standard's own evaluation of a small file, for those that onnxruntime refuses.

    It is tried on zeros, for it does not know every operator of every version; nor does it know
    the broadcasting at an axis of opset 6 and before.

    Raises:
        InvalidModel: the file is corrupt; or it is too large for this, has loops, whose length
            nobody limits, leaves sizes open, or cannot be evaluated.
    """
    model = load(path)
    refusal = InvalidModel("model: the reference evaluation is not for this file")
    nodes = list(all_nodes(model))
    aligned = ({item.name for item in node.attribute} >= {"broadcast", "axis"} for node in nodes)
    if (
        model.ByteSize() > _LARGEST_REFERENCE
        or len(nodes) > _MOST_REFERENCE_NODES
        or any(node.op_type in ("Loop", "Scan") for node in nodes)
        or any(aligned)
        or any(item.shape is None or None in item.shape[1:] for item in header(model).inputs)
    ):
        raise refusal
    found = cast(Reference, _guard(lambda: Reference(model), refusal))
    zeros = [
        torch.zeros([length or 1 for length in shape], dtype=dtype)
        for shape, dtype in zip(found.input_shapes, found.input_dtypes, strict=True)
    ]
    started = time.monotonic()
    _guard(lambda: found.run(*zeros), refusal)
    if time.monotonic() - started > _LONGEST_REFERENCE:
        raise refusal
    return found


def _detach_weights(model: ModelProto) -> dict[str, Any]:
    """Take the large weights out of a model that is too large for one message."""
    held: dict[str, Any] = {}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _LARGE_WEIGHT:
            held[tensor.name] = numpy_helper.to_array(tensor)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="in memory")
    return held


def _guard(action: Callable[[], Any], failure: InvalidRequest) -> Any:
    try:
        return action()
    except Lacking:
        raise
    except Exception as error:
        raise failure from error


def _to_array(value: Tensor, dtype: torch.dtype) -> Any:
    value = value.detach().to("cpu", dtype).contiguous()
    if dtype is torch.bfloat16:
        return value.view(torch.int16).numpy().view(helper.tensor_dtype_to_np_dtype(_BFLOAT16))
    return value.numpy()


def _to_tensor(value: Any) -> Tensor:
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(value.view(np.int16), order="C")).view(torch.bfloat16)
    return torch.from_numpy(np.array(value, order="C"))
