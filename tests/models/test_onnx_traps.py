"""What real and hostile ONNX files hold in store, one section each.

Others have their own files: recurrent states of another batch size (`test_onnx_recurrent.py`),
dynamic quantisation over a batch and straight-through gradients (`test_onnx_quantised*.py`),
training-mode and half-precision exports (`test_onnx_files.py`), external data
(`test_onnx_files.py`, `test_onnx_limits.py`), and files that ask for too much
(`test_onnx_bombs.py`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from loading_files import load
from onnx import TensorProto, helper, numpy_helper
from onnx_chain import node, save
from torch import Tensor, nn
from zoo.architectures import ZOO, eager
from zoo.exports import Export, Exporter, write

from interpret_server.errors import InvalidModel, ModelRejected
from interpret_server.models.onnx import import_model, reference, runtime, to_module
from interpret_server.models.targets import Targets

CLASSES = 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


# A batch of 1 baked into reshapes.

BAKED = [
    (name, Export(exporter, opset, dynamic=False))
    for exporter, opset, names in (
        (
            Exporter.LEGACY,
            17,
            "resnet_basic densenet inception mobilenet convnext vit swin mixer audio_cnn",
        ),
        (Exporter.DYNAMO, 20, "resnet_bottleneck shufflenet tabular_mlp"),
    )
    for name in names.split()
]


@pytest.mark.parametrize(("name", "export"), BAKED, ids=str)
def test_rows_of_a_baked_batch_equal_those_alone(name, export, path):
    write(name, export, path)
    lowered, alone = import_model(path), to_module(path)
    (x,) = ZOO[name].inputs(3, torch.Generator().manual_seed(0))
    leaf = x.clone().requires_grad_()
    ours = lowered.graph(leaf)
    assert len(ours) == 3, lowered.notes
    slopes = torch.autograd.grad(ours[:, 1].sum(), leaf)[0]
    for row in range(3):
        single = x[row : row + 1].clone().requires_grad_()
        (expected,) = alone(single)
        slope = torch.autograd.grad(expected[:, 1].sum(), single)[0]
        for found, wanted in ((ours[row], expected[0]), (slopes[row], slope[0])):
            assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        oracle = runtime(path).run(x[row : row + 1])[0]
        assert (ours[row] - oracle[0]).abs().max() <= 1e-5 * oracle.abs().max()
    torch.testing.assert_close(ours, eager(name)(x), rtol=1e-4, atol=1e-5)


def test_a_baked_batch_is_freed_where_other_sizes_are_free_but_small(path):
    table = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)  # of positions
    nodes = [
        node("Shape", "x", "length", start=1, end=2),
        node("Slice", "table zero length zero", "places"),
        node("Add", "x places", "sum"),
        node("ReduceMean", "sum", "mean", axes=[1], keepdims=0),
        node("Reshape", "mean flat"),
    ]
    stored = {"table": table, "zero": np.array([0]), "flat": np.array([1, 4])}
    save(path, nodes, stored, [1, "length", 4])
    lowered = import_model(path)
    assert not any("no other" in note for note in lowered.notes)
    for rows, length in ((1, 7), (3, 12), (4, 2)):
        x = torch.randn(rows, length, 4)
        expected = (x + torch.tensor(table)[:length]).mean(1)
        torch.testing.assert_close(lowered.graph(x), expected)


# Logits behind what follows them.

WEIGHT = np.random.default_rng(0).normal(size=(4, CLASSES)).astype(np.float32)
SHAPES = {"flat": [-1, CLASSES], "deep": [-1, CLASSES, 1, 1]}
TAILS = {
    "identity": [node("Identity", "s")],
    "cast": [node("Cast", "s", "t", to=TensorProto.DOUBLE), node("Cast", "t", to=1)],
    "reshape": [node("Reshape", "s deep", "t"), node("Flatten", "t")],
    "squeeze": [node("Reshape", "s deep", "t"), node("Squeeze", "t last")],
    "unsqueeze": [node("Unsqueeze", "s second", "t"), node("Reshape", "t flat")],
    "all": [
        node("Identity", "s", "a"),
        node("Unsqueeze", "a second", "b"),
        node("Cast", "b", "c", to=TensorProto.DOUBLE),
        node("Squeeze", "c second", "d"),
        node("Reshape", "d flat", "e"),
        node("Cast", "e", to=TensorProto.FLOAT),
    ],
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(
    ("operator", "source"),
    [("Softmax", "softmax"), ("LogSoftmax", "log_softmax"), ("Sigmoid", "sigmoid")],
)
def test_logits_are_found_behind_what_only_rearranges(operator, source, tail, path):
    nodes = [
        node("MatMul", "x w", "z"),
        node(operator, "z", "s", **({} if operator == "Sigmoid" else {"axis": 1})),
        *TAILS[tail],
    ]
    stored = {name: np.array(shape, np.int64) for name, shape in SHAPES.items()}
    stored |= {"w": WEIGHT, "last": np.array([2, 3]), "second": np.array([1])}
    save(path, nodes, stored)
    loaded = load(path, inputs=[{"bounds": (0, 1)}])
    assert loaded.info.logits_from == source
    x = torch.rand(5, 4)
    torch.testing.assert_close(loaded.classifier(x), x @ torch.tensor(WEIGHT))


@pytest.mark.parametrize("before", ["MatMul", "Softmax"])
def test_logits_are_found_before_the_largest_is_picked(before, path):
    nodes = [node("MatMul", "x w", "z")]
    nodes += [node("Softmax", "z", "s", axis=1)] if before == "Softmax" else []
    nodes += [node("ArgMax", "s" if before == "Softmax" else "z", "i", axis=1, keepdims=1)]
    nodes += [node("Squeeze", "i one", "y")]
    save(path, nodes, {"w": WEIGHT, "one": np.array([1])}, output=TensorProto.INT64)
    loaded = load(path, inputs=[{"bounds": (0, 1)}])
    assert loaded.info.logits_from == "argmax"
    x = torch.rand(5, 4)
    torch.testing.assert_close(loaded.classifier(x), x @ torch.tensor(WEIGHT))


# Weights that are no initializers.

KERNEL = np.random.default_rng(1).normal(size=(2, 3, 3, 3)).astype(np.float32)
WEIGHTS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], np.ndarray]] = {
    "identity": ([node("Identity", "k", "w")], {"k": KERNEL}, KERNEL),
    "constant": (
        [node("Constant", "", "w", value=numpy_helper.from_array(KERNEL))],
        {},
        KERNEL,
    ),
    "constant of shape": (
        [
            helper.make_node(
                "ConstantOfShape",
                ["n"],
                ["w"],
                value=numpy_helper.from_array(np.full(1, 0.25, np.float32)),
            )
        ],
        {"n": np.array(KERNEL.shape)},
        np.full(KERNEL.shape, 0.25, np.float32),
    ),
    "dequantised": (
        [node("DequantizeLinear", "k s z", "w", axis=0)],
        {
            "k": (KERNEL * 40).astype(np.int8),
            "s": np.array([0.5, 0.25], np.float32),
            "z": np.array([3, -2], np.int8),
        },
        ((KERNEL * 40).astype(np.int8) - np.array([3, -2.0]).reshape(2, 1, 1, 1)).astype(np.float32)
        * np.array([0.5, 0.25], np.float32).reshape(2, 1, 1, 1),
    ),
    "transposed": (
        [node("Transpose", "k", "w", perm=[3, 0, 1, 2])],
        {"k": KERNEL.transpose(1, 2, 3, 0)},
        KERNEL,
    ),
    "half": (
        [node("Cast", "k", "w", to=TensorProto.FLOAT)],
        {"k": KERNEL.astype(np.float16)},
        KERNEL.astype(np.float16).astype(np.float32),
    ),
    "pieces": (
        [
            node("Split", "k", "a b", axis=0),
            node("Concat", "b a", "c", axis=0),
            node("Reshape", "c n", "d"),
            node("Mul", "d two", "w"),
        ],
        {"k": KERNEL, "n": np.array(KERNEL.shape), "two": np.float32(2)},
        KERNEL[::-1] * 2,
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_the_graph_computes_are_weights(name, path):
    nodes, stored, kernel = WEIGHTS[name]
    save(path, [*nodes, node("Conv", "x w")], stored, ["n", 3, 5, 5])
    graph = import_model(path).graph
    (layer,) = (module for module in graph.modules() if isinstance(module, nn.Conv2d))
    torch.testing.assert_close(layer.weight.detach(), torch.tensor(kernel.copy()))
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    y = graph(x)
    torch.testing.assert_close(y, runtime(path).run(x.detach())[0])
    (slope,) = torch.autograd.grad(y.sum(), x)
    ones = torch.ones_like(y)
    expected = nn.functional.conv_transpose2d(ones, torch.tensor(kernel.copy()))
    torch.testing.assert_close(slope, expected)


# Versions that onnxruntime refuses.


def old(path: Path) -> None:
    """Before opset 7 an Add broadcast where it said so, which onnxruntime does not know."""
    nodes = [node("MatMul", "x w", "z"), node("Add", "z b", broadcast=1)]
    save(path, nodes, {"w": WEIGHT, "b": WEIGHT[0]}, opset=6)


def new(path: Path) -> None:
    nodes = [node("MatMul", "x w", "z"), node("Swish", "z")]
    save(path, nodes, {"w": WEIGHT}, opset=onnx.defs.onnx_opset_version())


@pytest.mark.parametrize("make", [old, new])
def test_a_version_that_onnxruntime_refuses_is_verified_by_the_reference(make, path):
    make(path)
    with pytest.raises(InvalidModel, match="onnxruntime"):
        runtime(path)
    loaded = load(path, inputs=[{"bounds": (0, 1)}])
    assert loaded.info.verification.reference == "onnx.reference"
    assert 0 <= loaded.info.verification.max_difference < 1e-5
    assert any("evaluator" in note for note in loaded.info.notes)
    x = torch.rand(3, *loaded.info.input_shape)
    logits = loaded.classifier(x)
    torch.testing.assert_close(logits, reference(path).run(x)[0])
    gradient = loaded.classifier.gradient(x, Targets.classes(torch.arange(3))).inputs
    assert gradient.shape == x.shape
    assert gradient.any()


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([node("Mul", "x b", broadcast=1, axis=1)], ["n", 3, 3]),  # which it aligns at the end
        ([node("Clip", "x", min=0.0)], ["n", 3, 3]),  # which it cannot run
        ([node("Add", "x b", broadcast=1)], ["n", "height", 3]),
    ],
)
def test_what_the_reference_cannot_tell_is_not_asked_of_it(nodes, shape, path):
    save(path, nodes, {"b": np.ones(3, np.float32)}, shape, opset=5)
    with pytest.raises(InvalidModel, match="reference"):
        reference(path)


def test_a_wrong_import_is_noticed_by_the_reference_too(path, monkeypatch):
    new(path)
    monkeypatch.setattr(torch.nn.functional, "silu", torch.relu)
    monkeypatch.setattr(nn.SiLU, "forward", lambda self, x: x.relu())
    with pytest.raises(ModelRejected, match=r"onnx\.reference"):
        load(path, inputs=[{"bounds": (0, 1)}])


def test_the_reference_is_not_asked_for_what_may_take_for_ever(path):
    body = helper.make_graph(
        [node("Identity", "c", "d"), node("Add", "v v", "u")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("u", TensorProto.FLOAT, None),
        ],
    )
    save(path, [node("Loop", "n _ x", body=body)], {"n": np.int64(2**60)})
    with pytest.raises(InvalidModel, match="reference"):
        reference(path)


# Differences that are the network's own rounding.


def cancelling(path: Path, *, wrong: float = 0.0) -> None:
    """The difference of two nearly equal sums, of which float32 leaves few digits."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(256, CLASSES)).astype(np.float32) * 100
    other = (weight * (1 + 1e-5 * generator.normal(size=weight.shape))).astype(np.float32)
    nodes = [
        node("MatMul", "x w", "a"),
        node("Softplus", "a", "b"),
        node("MatMul", "x v", "c"),
        node("Softplus", "c", "d"),
        node("Sub", "b d", "e"),
        node("Add", "e z"),
    ]
    save(path, nodes, {"w": weight, "v": other, "z": np.float32(wrong)}, ["n", 256])


def test_a_difference_within_the_networks_own_noise_is_accepted(path):
    cancelling(path)
    verification = load(path, inputs=[{"bounds": (0, 1)}]).info.verification
    assert verification.reference == "onnxruntime"
    assert 1e-4 < verification.relative_difference < 1e-1


def test_a_difference_beyond_the_networks_own_noise_is_refused(path, monkeypatch):
    cancelling(path)
    real = import_model

    def wrong(path: Path, **options: Any) -> Any:
        cancelling(path, wrong=5.0)
        lowered = real(path, **options)
        cancelling(path)
        return lowered

    monkeypatch.setattr("interpret_server.models.onnx.import_model", wrong)
    with pytest.raises(ModelRejected, match="differs from the file's own execution"):
        load(path, inputs=[{"bounds": (0, 1)}])


# Attention with nothing to attend to.


def test_a_fully_masked_row_has_a_finite_gradient(path):
    """Exporters write a softmax and then zeroes where it gave NaN."""
    nodes = [
        node("Transpose", "x", "t", perm=[0, 2, 1]),
        node("MatMul", "x t", "scores"),
        node("Add", "scores mask", "masked"),
        node("Softmax", "masked", "p", axis=-1),
        node("IsNaN", "p", "none"),
        node("Where", "none zero p", "q"),
        node("MatMul", "q x", "v"),
        node("ReduceMean", "v", axes=[1], keepdims=0),
    ]
    mask = np.zeros((3, 3), np.float32)
    mask[1], mask[2, 0] = -np.inf, -np.inf
    save(path, nodes, {"mask": mask, "zero": np.float32(0)}, ["n", 3, 4])
    graph = import_model(path).graph

    def exact(x: Tensor) -> Tensor:
        rows = [(x[:, :1] @ x.mT).softmax(-1) @ x, (x[:, 2:] @ x[:, 1:].mT).softmax(-1) @ x[:, 1:]]
        return torch.cat(rows, 1).sum(1) / 3

    x = torch.randn(2, 3, 4, requires_grad=True)
    torch.testing.assert_close(graph(x), exact(x))
    torch.testing.assert_close(graph(x).detach(), runtime(path).run(x.detach())[0])
    ours, expected = (torch.autograd.grad(f(x)[:, 1].sum(), x)[0] for f in (graph, exact))
    torch.testing.assert_close(ours, expected)
