"""Graphs written in ONNX's text form, and their comparison with two oracles."""

from pathlib import Path

import numpy as np
import onnx.parser
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from interpret_server.models.onnx import import_model, runtime, to_module


def write(path: Path, text: str, opset: int = 17) -> None:
    """Save a graph that is given in text form."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    path.write_bytes(onnx.parser.parse_model(header + text).SerializeToString())


def check(path: Path, *inputs: Tensor, gradient: bool = True, reference: bool = True) -> None:
    """Both forms of the import against both oracles; the gradient against differences."""
    forms = [to_module(path), import_model(path).graph]
    session = runtime(path)._session
    feeds = {item.name: x.numpy() for item, x in zip(session.get_inputs(), inputs, strict=True)}
    exact = session.run(None, feeds)
    others = ReferenceEvaluator(str(path)).run(None, feeds) if reference else exact
    for form in forms:
        outputs = form(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for ours, expected, other in zip(outputs, exact, others, strict=True):
            torch.testing.assert_close(ours, torch.from_numpy(np.array(expected)))
            # The reference joins what a loop's steps give instead of stacking it.
            torch.testing.assert_close(ours, torch.from_numpy(other.reshape(expected.shape)))
    if gradient:
        module = forms[0].double()
        leaves = [x.double().requires_grad_() if x.is_floating_point() else x for x in inputs]
        assert torch.autograd.gradcheck(
            lambda *xs: [y for y in module(*xs) if y.is_floating_point()], leaves, fast_mode=True
        )


def batches(*shape: int) -> list[Tensor]:
    """Rows of a shape: one, and three."""
    return [torch.randn(rows, *shape) for rows in (1, 3)]
