"""Attention rollout against numpy, over attention that hooks read on the eager module."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from interpret_plugins.attribution.attention_rollout import AttentionRollout
from interpret_server.errors import FailedPrecondition, InvalidRequest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.testing import classifier, conformance
from tests.plugins.attribution.maps import Recorder, run
from tests.plugins.attribution.transformers import FORMS, IMAGE, Block, Vision, load, vision

LABELS = torch.tensor([0, 3, 1])


def attention_of(module: Vision, x: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each block's attention `(N, heads, T, T)` and the logits' gradient by it."""
    read: list[Tensor] = []
    hooks = [
        block.softmax.register_forward_hook(lambda _, __, value: read.append(value))
        for block in module.blocks
    ]
    logits = module(x.clone().requires_grad_())
    for hook in hooks:
        hook.remove()
    chosen = logits.gather(1, labels[:, None]).sum()
    slopes = torch.autograd.grad(chosen, read)
    return [(a.detach(), g) for a, g in zip(read, slopes, strict=True)]


def rollout(
    layers: list[tuple[Tensor, Tensor]], residual: float, heads: str
) -> NDArray[np.float64]:
    """Abnar & Zuidema 2020, one row after the other."""
    fuse = {"mean": np.mean, "max": np.max, "min": np.min}[heads]
    rows = []
    for row in range(len(layers[0][0])):
        total = np.eye(layers[0][0].shape[-1])
        for weights, _ in layers:
            fused = fuse(weights[row].double().numpy(), axis=0)
            mixed = (1 - residual) * fused + residual * np.eye(len(fused))
            total = (mixed / mixed.sum(axis=1, keepdims=True)) @ total
        rows.append(total)
    return np.stack(rows)


def chefer(layers: list[tuple[Tensor, Tensor]]) -> NDArray[np.float64]:
    """Chefer et al. 2021, self-attention, one row after the other."""
    rows = []
    for row in range(len(layers[0][0])):
        total = np.eye(layers[0][0].shape[-1])
        for weights, slopes in layers:
            product = (weights[row] * slopes[row]).double().numpy()
            total = total + np.maximum(product, 0).mean(axis=0) @ total
        rows.append(total)
    return np.stack(rows)


def near(found: Tensor, expected: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True], ids=["written", "fused"])
@pytest.mark.parametrize("form", FORMS)
def test_files_equal_numpy_over_the_eager_modules_attention(
    form: str, fused: bool, tmp_path: Path
) -> None:
    model = load(vision(fused), form, tmp_path, IMAGE)
    x, targets = torch.rand(3, *IMAGE), Targets.classes(LABELS)
    layers = attention_of(vision(), x, LABELS)

    result = run(AttentionRollout, model, x, targets)
    expected = rollout(layers, 0.5, "mean")
    near(result.rollout, expected)
    near(result.tokens, expected[:, 0])  # the class token is read
    assert result.tokens_read.tolist() == [1, 1, 1]
    patches = expected[:, 0, 1:].reshape(3, 2, 3)
    near(result.attributions, patches.repeat(4, axis=1).repeat(4, axis=2))
    torch.testing.assert_close(result.logits, vision()(x))

    result = run(AttentionRollout, model, x, targets, method="gradient", upsample="none")
    expected = chefer(layers)
    near(result.tokens[:, 1:], expected[:, 0, 1:])
    near(result.attributions, expected[:, 0, 1:].reshape(3, 2, 3))


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
@pytest.mark.parametrize("residual", [0.0, 0.3])
def test_a_mean_over_tokens_is_read_from_all_of_them(heads: str, residual: float) -> None:
    module = vision(class_token=False)
    model = classifier(module, IMAGE, input_layout="CHW")
    x = torch.rand(3, *IMAGE)
    settings = {"heads": heads, "residual": residual, "upsample": "none"}
    result = run(AttentionRollout, model, x, Targets.classes(LABELS), **settings)
    expected = rollout(attention_of(module, x, LABELS), residual, heads)
    near(result.rollout, expected)
    near(result.attributions, expected.mean(1).reshape(3, 2, 3))
    assert result.tokens_read.tolist() == [6, 6, 6]
    one = run(AttentionRollout, model, x, Targets.classes(LABELS), query=4, **settings)
    near(one.tokens, expected[:, 4])


def test_the_smallest_weights_can_be_discarded() -> None:
    module = vision()
    model = classifier(module, IMAGE, input_layout="CHW")
    x = torch.rand(2, *IMAGE)
    layers = attention_of(module, x, LABELS[:2])
    kept = []
    for weights, slopes in layers:
        fused = weights.mean(1, keepdim=True)
        for row in fused.flatten(1):
            row[row.argsort()[: int(0.4 * len(row))]] = 0
        kept.append((fused, slopes))
    result = run(AttentionRollout, model, x, Targets.classes(LABELS[:2]), discard=0.4)
    near(result.rollout, rollout(kept, 0.5, "mean"))


def test_only_attention_before_the_target_counts() -> None:
    module = vision()
    model = classifier(module, IMAGE, input_layout="CHW")
    x = torch.rand(3, *IMAGE)
    index = torch.tensor([[2, 0], [5, 1], [6, 7]])
    targets = Targets(TargetKind.NEURON, index, "blocks.0.out")
    result = run(AttentionRollout, model, x, targets)
    expected = rollout(attention_of(module, x, LABELS)[:1], 0.5, "mean")
    near(result.rollout, expected)
    near(result.tokens, expected[torch.arange(3), index[:, 0]])
    assert result.logits is None


class Flat(nn.Module):
    """A target that no attention leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = Block(8, 2, False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.block(x)[:, 0]) * 0)


def test_a_gradient_that_is_zero_is_warned_about() -> None:
    model, job = classifier(Flat(), (5, 8)), Recorder()
    x = torch.rand(2, 5, 8)
    targets = Targets.classes(torch.tensor([0, 2]))
    result = run(AttentionRollout, model, x, targets, job, method="gradient")
    assert not result.tokens.any()
    assert [rows for rows, _ in job.warned] == [[True, True]]


class Windows(nn.Module):
    """Attention within halves of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = Block(8, 2, False), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x.reshape(-1, 3, 8))
        return self.last(y.reshape(-1, 48))


def test_networks_without_self_attention_among_all_tokens_are_refused() -> None:
    x, targets = torch.rand(1, 6, 8), Targets.classes(LABELS[:1])
    plain = classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), (6, 8))
    with pytest.raises(FailedPrecondition, match="no self-attention"):
        run(AttentionRollout, plain, x, targets)
    with pytest.raises(FailedPrecondition, match="within windows"):
        run(AttentionRollout, classifier(Windows().eval(), (6, 8)), x, targets)
    model = classifier(vision(), IMAGE, input_layout="CHW")
    with pytest.raises(InvalidRequest, match="7 tokens"):
        run(AttentionRollout, model, torch.rand(1, *IMAGE), targets, query=7)


def test_keeps_the_contract() -> None:
    model = classifier(vision(), IMAGE, input_layout="CHW")
    for method in ("rollout", "gradient"):
        conformance(AttentionRollout, params={"method": method}, models=[model])
