"""Sequences against onnxruntime and the reference evaluator; embeddings."""

from pathlib import Path

import pytest
import torch
from onnx_text import batches, check, write
from torch import Tensor, nn

from interpret_server.errors import InvalidModel
from interpret_server.models.onnx import import_model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


STATIC_SEQUENCE = """
static (float[n, 4] x) => (float[n, m] y, int64 length) {
    one = Constant <value: tensor = int64 {1}> ()
    last = Constant <value: tensor = int64 {-1}> ()
    two = Constant <value: tensor = int64 {2}> ()
    a = Relu (x)
    empty = SequenceEmpty ()
    first = SequenceInsert (empty, a)
    more = SequenceConstruct (x, a)
    joined = ConcatFromSequence <axis: int = 1> (more)
    pieces = SplitToSequence <axis: int = 1> (joined, two)
    shorter = SequenceErase (pieces, one)
    b = SequenceAt (shorter, last)
    c = SequenceAt (first, last)
    longer = SequenceInsert (shorter, b, one)
    length = SequenceLength (longer)
    parts = SequenceConstruct (b, c)
    y = ConcatFromSequence <axis: int = -1> (parts)
}"""


def test_sequences_of_known_length_leave_no_trace(path):
    write(path, STATIC_SEQUENCE)
    for x in batches(4):
        check(path, x)
    nodes = import_model(path).graph.graph.nodes
    assert not any(node.meta.get("kind") == "sequence" for node in nodes)


DYNAMIC_SEQUENCE = """
dynamic (float[n, 3] x, int64 times) => (float[n, k, 3] y, float[n, 3] z, int64 length) {
    yes = Constant <value: tensor = bool {1}> ()
    zero = Constant <value: tensor = int64 {0}> ()
    empty = SequenceConstruct (x)
    all, w = Loop (times, yes, empty, x) <
        body = step (int64 i, bool before, seq(float[n, 3]) list, float[n, 3] a) =>
            (bool after, seq(float[n, 3]) longer, float[n, 3] b) {
            after = Identity (before)
            b = Sin (a)
            longer = SequenceInsert (list, b)
        }
    >
    length = SequenceLength (all)
    shorter = SequenceErase (all, zero)
    z = SequenceAt (all, times)
    y = ConcatFromSequence <axis: int = 1, new_axis: int = 1> (shorter)
}"""


@pytest.mark.parametrize("times", [1, 4])
def test_sequences_that_a_loop_fills_agree_with_the_oracles(times, path):
    write(path, DYNAMIC_SEQUENCE)
    for x in batches(3):
        check(path, x, torch.tensor(times))


def test_a_position_outside_a_sequence_is_refused(path):
    write(
        path,
        """
        outside (float[n] x) => (float[n] y) {
            two = Constant <value: tensor = int64 {2}> ()
            both = SequenceConstruct (x, x)
            y = SequenceAt (both, two)
        }""",
    )
    with pytest.raises(InvalidModel, match="position 2 of a sequence of 2"):
        import_model(path)


def test_a_table_read_by_tokens_is_an_embedding(path):
    write(
        path,
        """
        embedded (int64[n, k] tokens) => (float[n, k, 2] y) {
            table = Constant <value: tensor = float[3, 2] {0, 1, 2, 3, 4, 5}> ()
            rows = Gather (table, tokens)
            y = Tanh (rows)
        }""",
    )
    graph = import_model(path).graph
    (node,) = (n for n in graph.graph.nodes if n.meta.get("kind") == "embedding")
    layer = graph.get_submodule(str(node.target))
    assert isinstance(layer, nn.Embedding)
    assert len(node.args) == 1
    assert not layer.weight.requires_grad
    check(path, torch.tensor([[0, 2, -1], [1, -3, 2]]), gradient=False)
    found: list[Tensor] = []
    layer.register_forward_hook(lambda _, __, y: found.append(y.requires_grad_()))
    graph(torch.tensor([[1]])).sum().backward()
    torch.testing.assert_close(found[0].grad, 1 - found[0].tanh() ** 2)
