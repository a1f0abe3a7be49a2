"""Attention where every key of a query is masked: the file's values, and finite gradients."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_node import save
from torch import Tensor

from interpret_server.models.onnx import import_model, to_module

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
# The second query may attend to no key, the third to one.
MASK = torch.tensor([[True, False, True], [False] * 3, [False, False, True]])
SCORES = torch.tensor([[0.3, -1.0, 0.5], [0.1, 0.2, -0.4], [1.0, 2.0, 3.0]])


def info(name: str, kind: int, rank: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [f"{name}{i}" for i in range(rank)])


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), outputs, **attributes)


def number(name: str, value: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, np.float32), name)


MASKING = {
    "where": [node("Where", "mask x low", "masked")],
    "sum": [node("Where", "mask zero low", "bias"), node("Add", "x bias", "masked")],
    "scaled": [
        node("Div", "x two", "half"),
        node("Where", "mask zero low", "bias"),
        node("Add", "half bias", "masked"),
    ],
    "reshaped": [
        node("Where", "mask x low", "chosen"),
        node("Unsqueeze", "chosen axis", "more"),
        node("Squeeze", "more axis", "masked"),
    ],
    "logarithm": [
        node("Cast", "mask", "ones", to=FLOAT),
        node("Log", "ones", "bias"),
        node("Add", "x bias", "masked"),
    ],
}


def masked_softmax(path: Path, how: str, operator: str, *, replaced: bool) -> None:
    """Softmax of `x` where `mask` is; with the NaN that it gives replaced by 0, or as they are."""
    nodes = [*MASKING[how], node(operator, "masked", "soft", axis=-1)]
    if replaced:
        nodes += [node("IsNaN", "soft", "empty"), node("Where", "empty zero soft", "y")]
    else:
        nodes += [node("Identity", "soft", "y")]
    stored = [number("zero", 0.0), number("two", 2.0), number("low", -math.inf)]
    stored += [numpy_helper.from_array(np.array([0], np.int64), "axis")]
    save(
        path,
        nodes,
        [info("x", FLOAT, 2), info("mask", BOOL, 2)],
        stored,
        [info("y", FLOAT, 2)],
        opset=20,
    )


def gradient(module: Any, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    outputs = module(leaf, mask)
    y = outputs if isinstance(outputs, Tensor) else outputs[0]
    weights = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    return y.detach(), torch.autograd.grad((y.nan_to_num() * weights).sum(), leaf)[0]


@pytest.mark.parametrize("replaced", [True, False])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("how", MASKING)
def test_masked_softmax(how, operator, replaced, tmp_path):
    path = tmp_path / "model.onnx"
    masked_softmax(path, how, operator, replaced=replaced)
    with np.errstate(all="ignore"):
        (expected,) = ReferenceEvaluator(str(path)).run(
            None, {"x": SCORES.numpy(), "mask": MASK.numpy()}
        )
    kept = SCORES[[0, 2]].clone().requires_grad_()
    scaled = (kept / 2 if how == "scaled" else kept).masked_fill(~MASK[[0, 2]], -math.inf)
    soft = scaled.softmax(-1) if operator == "Softmax" else scaled.log_softmax(-1)
    weights = torch.linspace(-1, 1, 9).reshape(3, 3)[[0, 2]]
    finite = torch.where(soft == -math.inf, torch.zeros_like(soft), soft)
    (other,) = torch.autograd.grad((finite * weights).sum(), kept)
    for module in (import_model(path).graph, to_module(path)):
        y, found = gradient(module, SCORES, MASK)
        torch.testing.assert_close(y, torch.tensor(expected), equal_nan=True)
        assert torch.equal(found[1], torch.zeros(3))
        torch.testing.assert_close(found[[0, 2]], other)


def test_softmax_of_scores_without_a_mask_stays_alone(tmp_path):
    path = tmp_path / "model.onnx"
    weight = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    nodes = [node("MatMul", "x w", "scores"), node("Add", "scores w", "more")]
    nodes += [node("Softmax", "more", "y")]
    save(path, nodes, [info("x", FLOAT, 2)], [weight], [info("y", FLOAT, 2)])
    names = [item.target for item in import_model(path).graph.graph.nodes]
    assert not any(getattr(name, "__name__", "") == "masked_again" for name in names)


@pytest.mark.parametrize("kind", [BOOL, FLOAT])
@pytest.mark.parametrize("opset", [23, 24])
def test_attention_operator_with_a_query_that_sees_nothing(opset, kind, tmp_path):
    path = tmp_path / "model.onnx"
    inputs = [info(name, FLOAT, 4) for name in "qkv"] + [info("mask", kind, 2)]
    nodes = [node("Attention", "q k v mask", "y")]
    save(path, nodes, inputs, [], [info("y", FLOAT, 4)], opset=opset)
    q, k, v = torch.randn(3, 2, 2, 3, 4).unbind()
    mask = MASK if kind == BOOL else torch.zeros(3, 3).masked_fill(~MASK, -math.inf)
    feeds = dict(zip(("q", "k", "v", "mask"), (t.numpy() for t in (q, k, v, mask)), strict=True))
    with np.errstate(all="ignore"):
        (expected,) = ReferenceEvaluator(str(path)).run(None, feeds)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    y = import_model(path).graph(*leaves, mask)
    torch.testing.assert_close(y, torch.tensor(expected), equal_nan=True)
    found = torch.autograd.grad(y.nan_to_num().square().sum(), leaves)
    assert all(value.isfinite().all() for value in found)
    assert torch.equal(found[0][:, :, 1], torch.zeros(2, 2, 4))
    others = [t.clone().requires_grad_() for t in (q, k, v)]
    seen = torch.nn.functional.scaled_dot_product_attention(
        others[0][:, :, [0, 2]], others[1], others[2], attn_mask=MASK[[0, 2]]
    )
    for ours, theirs in zip(found, torch.autograd.grad(seen.square().sum(), others), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
