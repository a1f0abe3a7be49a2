"""onnxruntime as the reference: it runs the original file, without gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import FailedPrecondition, InvalidModel, InvalidRequest
from .file import check

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


class OnnxRuntime:
    """A session of onnxruntime on the CPU.

    Attributes:
        input_names: in the file's order.
        input_shapes: all axes of each input; None where the file leaves a size open.
        input_dtypes: of each input; float16 inputs are converted on the way in.
        output_names: of the outputs that are tensors of numbers or lists of class scores.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        inputs = session.get_inputs()
        self.input_names: tuple[str, ...] = tuple(item.name for item in inputs)
        self.input_shapes: tuple[tuple[int | None, ...], ...] = tuple(
            tuple(axis if isinstance(axis, int) and axis >= 0 else None for axis in item.shape)
            for item in inputs
        )
        self.input_dtypes = tuple(_DTYPES.get(item.type, torch.float32) for item in inputs)
        outputs = session.get_outputs()
        self.output_names: tuple[str, ...] = tuple(
            item.name for item in outputs if item.type in _DTYPES or item.type.startswith("seq(map")
        )

    @property
    def batch(self) -> int | None:
        """The batch size that the file fixes, or None."""
        return next((shape[0] for shape in self.input_shapes if shape and shape[0]), None)

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs named by `output_names` for inputs in order, each `(N, ...)`.

        Where the file fixes the batch size, the rows are run in batches of that size, the last one
        filled up with copies of its last row.

        Raises:
            InvalidRequest: onnxruntime refuses the inputs, or fails on them.
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

    def _run(self, inputs: tuple[Tensor, ...] | list[Tensor]) -> list[Tensor]:
        feeds = {
            name: value.detach().to("cpu", dtype).contiguous().numpy()
            for name, value, dtype in zip(self.input_names, inputs, self.input_dtypes, strict=True)
        }
        values = _guard(
            lambda: self._session.run(list(self.output_names), feeds),
            InvalidRequest("inputs: onnxruntime cannot run the model on inputs of this shape"),
        )
        return [_to_tensor(value) for value in values]


def runtime(path: Path, *, threads: int = 1) -> OnnxRuntime:
    """A session for a file, on the CPU.

    Args:
        threads: that one operator may use.

    Raises:
        FailedPrecondition: onnxruntime is not installed.
        InvalidModel: the file is corrupt, unsafe, or onnxruntime does not run it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise FailedPrecondition(
            "onnxruntime is not installed; install interpret-server[cpu], or interpret-server[gpu] "
            "on a machine with CUDA"
        ) from error
    check(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _FATAL_ONLY
    session = _guard(
        lambda: onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        ),
        InvalidModel("model: onnxruntime cannot load the file"),
    )
    return OnnxRuntime(session)


def _guard(action: Callable[[], Any], failure: InvalidRequest) -> Any:
    try:
        return action()
    except Exception as error:
        raise failure from error


def _to_tensor(value: Any) -> Tensor:
    if isinstance(value, list):
        value = np.array([list(row.values()) for row in value])
    return torch.from_numpy(np.array(value, order="C"))
