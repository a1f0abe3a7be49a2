"""Fused operators of com.microsoft against onnxruntime, by hand and from its optimiser."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_networks import TEXT, Encoder, embedding_gradient, export, optimise, texts
from onnx_node import Node

from interpret_server.models.lowered import Unlowerable
from interpret_server.models.onnx import import_model, runtime, to_module

F32, I32, I64 = np.float32, np.int32, np.int64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def n(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(F32)


def case(
    operator: str,
    *inputs: Any,
    fed: Sequence[int] = (0,),
    results: Sequence[tuple[Any, int] | None] | None = None,
    domain: str = "com.microsoft",
    opset: int = 17,
    **attributes: Any,
) -> Node:
    results = results or [(F32, np.asarray(inputs[0]).ndim)]
    return Node(operator, inputs, attributes, fed, domain=domain, results=results, opset=opset)


X, ROW, OTHER = n(2, 5, 8), n(8, seed=1), n(2, 5, 8, seed=2)
IMAGE, KERNEL = n(2, 3, 7, 6), n(4, 3, 3, 3, seed=1)
PACKED, PACKED_BIAS = n(8, 24, seed=3) / 2, n(24, seed=4)
KEYS = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], I32)
PER_QUERY = np.tril(np.ones((2, 5, 5), I32))
BIG = np.tril(np.ones((2, 1, 9, 9), I32))
SCORES = n(1, 2, 5, 5, seed=5)
FLOATS = [(F32, 3), (F32, 5)]
TOKENS = np.array([[1, 5, 3, 0, 2], [4, 4, 1, 2, 0]], I32)
SEGMENTS = np.array([[0, 0, 1, 1, 1], [0, 1, 0, 1, 0]], I32)
EMBED = (n(6, 8), n(9, 8, seed=1), n(2, 8, seed=2), n(8, seed=3), n(8, seed=4))
CACHE = (np.cos(n(16, 2)), np.sin(n(16, 2)))

SMOOTH = [
    case("Gelu", X),
    case("FastGelu", X),
    case("FastGelu", X, ROW),
    case("BiasGelu", X, ROW),
    case("QuickGelu", X),
    case("QuickGelu", X, alpha=1.0),
    case("Inverse", n(2, 4, 4) + 3 * np.eye(4, dtype=F32)),
    *(
        case("FusedMatMul", a, b, transA=t, transB=u, alpha=0.5, fed=fed)
        for fed in ((0,), (0, 1))
        for a, b, t, u in (
            (n(2, 4, 5), n(5, 3, seed=1), 0, 0),
            (n(2, 5, 4), n(2, 5, 3, seed=1), 1, 0),
            (n(2, 4, 5), n(3, 5, seed=1), 0, 1),
        )
    ),
    case("FusedMatMul", n(4, 2, 5), n(2, 5, 3, seed=1), transBatchA=1),
    *(
        case("FusedGemm", n(4, 5), n(5, 3, seed=1), n(3), activation=name, **given)
        for name, given in (
            ("Relu", {}),
            ("LeakyRelu", {"activation_alpha": 0.3}),
            ("Tanh", {"alpha": 0.5}),
        )
    ),
    *(
        case("FusedConv", IMAGE, KERNEL, n(4), *addend, activation=name, pads=[1] * 4, **given)
        for name, addend, given in (
            ("Relu", (), {}),
            ("Relu", (n(2, 4, 7, 6, seed=3),), {}),
            ("LeakyRelu", (), {"activation_params": [0.3]}),
            ("Clip", (), {"activation_params": [0.0, 0.5]}),
            ("HardSigmoid", (), {"activation_params": [0.2, 0.6]}),
            ("Sigmoid", (), {}),
        )
    ),
    case("LayerNormalization", X, ROW, OTHER[0, 0], domain="", opset=14, axis=-1, epsilon=1e-3),
    case("SimplifiedLayerNormalization", X, ROW, domain="", epsilon=1e-3),
    *(
        case("SkipLayerNormalization", X, *inputs, fed=(0, 1), results=results, epsilon=1e-3)
        for inputs, results in (
            ((OTHER, ROW), None),
            ((OTHER, ROW, OTHER[0, 0], OTHER[0, 1]), [(F32, 3), None, None, (F32, 3)]),
        )
    ),
    case(
        "SkipSimplifiedLayerNormalization",
        *(X, OTHER, ROW, OTHER[0, 1]),
        fed=(0, 1),
        results=[(F32, 3), None, None, (F32, 3)],
        epsilon=1e-3,
    ),
    *(
        case("Attention", X, PACKED, PACKED_BIAS, *inputs, num_heads=2, **attributes)
        for inputs, attributes in (
            ((), {}),
            ((KEYS,), {}),
            ((np.array([3, 5], I32),), {}),
            ((np.array([3, 5, 1, 0], I32),), {}),
            ((PER_QUERY,), {}),
            ((), {"unidirectional": 1}),
            ((KEYS,), {"unidirectional": 1, "scale": 0.3}),
            ((KEYS, None, SCORES), {"mask_filter_value": -100.0}),
            ((0 * KEYS,), {}),
        )
    ),
    case("Attention", X, PACKED[:, :20], n(20), num_heads=2, qkv_hidden_sizes=[8, 8, 4]),
    case(
        "Attention",
        *(X, PACKED, PACKED_BIAS, None, n(2, 2, 2, 3, 4)),
        num_heads=2,
        results=FLOATS,
        fed=(0, 4),
    ),
    *(
        case("MultiHeadAttention", *inputs, fed=fed, num_heads=2, **attributes)
        for inputs, fed, attributes in (
            ((X, OTHER, X[::-1].copy()), (0, 1, 2), {}),
            ((X, n(2, 7, 8), n(2, 7, 6), n(22)), (0, 1, 2), {}),
            ((X, OTHER, X, None, KEYS), (0, 1, 2), {}),
            ((X, OTHER, X, PACKED_BIAS, KEYS, SCORES), (0, 1, 2), {"scale": 0.2}),
            ((X, OTHER, X), (0, 1, 2), {"unidirectional": 1}),
            ((X, n(2, 2, 7, 4), n(2, 2, 7, 4, seed=1)), (0, 1, 2), {}),
        )
    ),
    case(
        "MultiHeadAttention",
        *(X, OTHER, X, None, None, None, n(2, 2, 3, 4), n(2, 2, 3, 4, seed=1)),
        fed=(0, 1, 2, 6, 7),
        num_heads=2,
        results=[(F32, 3), (F32, 4), (F32, 4)],
    ),
    *(
        case("RotaryEmbedding", x, position, *CACHE, interleaved=how, **attributes)
        for how in (0, 1)
        for x, position, attributes in (
            (X, np.array([3], I64), {}),
            (X, np.array([[0, 1, 2, 3, 4], [5, 1, 1, 2, 9]], I64), {}),
            (n(2, 3, 5, 4), np.array([3], I64), {}),
            (n(2, 5, 18), np.array([3], I64), {"num_heads": 3, "rotary_embedding_dim": 4}),
        )
    ),
]


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_fused_operator_agrees_with_onnxruntime(case, path):
    inputs = case.write(path)
    reference = runtime(path).run(*inputs)
    for ours, expected in zip(to_module(path)(*inputs), reference, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_gradient_of_a_fused_operator_is_that_of_differences(case, path):
    inputs = case.write(path)
    graph = import_model(path).graph.double()
    leaves = [x.double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    outputs = graph(*leaves)
    assert torch.autograd.gradcheck(graph, leaves, fast_mode=True, atol=1e-4)
    assert outputs is not None


def test_split_gelu_multiplies_one_half_by_gelu_of_the_other(path):
    (x,) = case("BiasSplitGelu", n(2, 5, 12), n(12, seed=1)).write(path)
    left, right = (x + torch.tensor(n(12, seed=1))).chunk(2, -1)
    (y,) = to_module(path)(x)
    torch.testing.assert_close(y, left * torch.nn.functional.gelu(right))


@pytest.mark.parametrize(("bias", "inner"), [((2, 3, 4, 5), 1), ((2, 1, 1, 5), 0)])
def test_biased_softmax_runs_over_the_last_axis(bias, inner, path):
    bias = n(*bias, seed=1)
    (x,) = case("BiasSoftmax", n(2, 3, 4, 5), bias, axis=3, is_inner_broadcast=inner).write(path)
    torch.testing.assert_close(to_module(path)(x)[0], (x + torch.tensor(bias)).softmax(-1))


def test_attention_reads_a_large_mask_from_its_first_query_on(path):
    inputs = X, PACKED, PACKED_BIAS
    (x,) = case("Attention", *inputs, BIG, num_heads=2).write(path)
    (y,) = to_module(path)(x)
    case("Attention", *inputs, BIG[:, 0, :5, :5], num_heads=2).write(path)
    torch.testing.assert_close(y, runtime(path).run(x)[0], rtol=2e-5, atol=2e-5)


def test_attention_takes_packed_queries_keys_and_values(path):
    packed = n(2, 5, 2, 3, 4)
    queries, keys, values = (np.ascontiguousarray(packed[:, :, :, i]) for i in range(3))
    case(
        "MultiHeadAttention",
        *(part.reshape(2, 5, 8) for part in (queries, keys, values)),
        fed=(0, 1, 2),
        num_heads=2,
    ).write(path)
    (expected,) = runtime(path).run(
        *(torch.tensor(part.reshape(2, 5, 8)) for part in (queries, keys, values))
    )
    three = [(F32, 3)]
    (x,) = case("MultiHeadAttention", packed, num_heads=2, results=three).write(path)
    torch.testing.assert_close(to_module(path)(x)[0], expected, rtol=2e-5, atol=2e-5)
    both = np.stack([keys, values], 3)
    inputs = queries.reshape(2, 5, 8), both
    fed = case("MultiHeadAttention", *inputs, fed=(0, 1), num_heads=2, results=three).write(path)
    torch.testing.assert_close(to_module(path)(*fed)[0], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("placed", [True, False])
def test_embeddings_are_looked_up_summed_and_normalised(segments, masked, placed, path):
    words, positions, kinds, gain, shift = EMBED
    embed = case(
        "EmbedLayerNormalization",
        TOKENS,
        SEGMENTS if segments else None,
        words,
        positions,
        kinds if segments else None,
        gain,
        shift,
        KEYS if masked else None,
        SEGMENTS if placed else None,
        fed=(0, *([1] if segments else []), *([7] if masked else []), *([8] if placed else [])),
        results=[(F32, 3), (I32, 1), (F32, 3)],
        epsilon=1e-5,
    )
    inputs = embed.write(path)
    expected = runtime(path).run(*inputs)
    torch.testing.assert_close(to_module(path)(*inputs), tuple(expected), rtol=1e-5, atol=1e-5)
    graph = import_model(path).graph
    kinds_of = [node.meta["kind"] for node in graph.graph.nodes if node.op == "call_module"]
    assert kinds_of.count("embedding") == 1 + segments + placed
    assert kinds_of.count("layer_norm") == 1


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (case("FusedConv", IMAGE, KERNEL, n(4), activation="Erf"), "the activation Erf"),
        (case("Attention", X, PACKED, PACKED_BIAS, num_heads=2, do_rotary=1), "rotary"),
        (case("MatMulNBits", X, n(8), n(8), None, n(8), K=8, N=1, block_size=16), "g_idx"),
    ],
    ids=str,
)
def test_unsupported_form_is_named(node, told, path):
    node.write(path)
    with pytest.raises(Unlowerable, match=told):
        import_model(path)


@pytest.mark.parametrize("multi_head", [False, True])
def test_optimised_encoder_is_the_same_network(multi_head, path):
    torch.manual_seed(0)
    network, inputs = Encoder().eval(), texts()
    export(network, inputs, path, TEXT)
    plain = import_model(path).graph
    optimise(path, multi_head=multi_head)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert operators >= {"EmbedLayerNormalization", "SkipLayerNormalization", "BiasGelu"}
    assert ("MultiHeadAttention" if multi_head else "Attention") in operators
    session = runtime(path)
    fed = [dict(zip(TEXT, inputs, strict=True))[name] for name in session.input_names]
    graph = import_model(path).graph
    torch.testing.assert_close(graph(*fed), session.run(*fed)[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        embedding_gradient(graph, fed), embedding_gradient(plain, inputs), rtol=1e-5, atol=1e-6
    )
    kinds = [node.meta["kind"] for node in graph.graph.nodes if node.op == "call_module"]
    counts = {kind: kinds.count(kind) for kind in ("embedding", "layer_norm", "gelu", "softmax")}
    assert counts == {"embedding": 2, "layer_norm": 5, "gelu": 2, "softmax": 2}
