"""Every building block, scripted and traced: outputs, gradients, rules; other batches and sizes."""

import io
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchscript_blocks import BLOCKS, Block
from torchscript_functions import FUNCTIONS
from torchscript_networks import NETWORKS
from torchscript_sequences import SEQUENCES

from interpret_server.models.relu_rules import ReluRule, count_rectifiers, relu_rule
from interpret_server.models.torchscript import ArchiveBody, lower, open_archive

ALL = BLOCKS | FUNCTIONS | SEQUENCES | NETWORKS
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
CELLS = [(name, form) for name, block in ALL.items() for form in block.forms]


def network(block: Block, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    return block.build().to(dtype).eval().requires_grad_(False)


def inputs(block: Block, shape: tuple[int, ...], rows: int, dtype: torch.dtype) -> Tensor:
    noise = torch.Generator().manual_seed(rows)
    if block.tokens:
        tokens = torch.randint(0, block.tokens, (rows, *shape), generator=noise)
        return tokens.sort(1, descending=True)[0]  # 0, which may mean padding, comes last
    return torch.randn(rows, *shape, generator=noise, dtype=torch.float64).to(dtype)


def archive(module: nn.Module, form: str, x: Tensor, path: Path) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = (
            torch.jit.trace(module, x, check_trace=False)
            if form.endswith("trace")
            else torch.jit.script(module)
        )
        if form.startswith("freeze"):
            made = torch.jit.freeze(made)
    buffer = io.BytesIO()
    torch.jit.save(made, buffer)
    path.write_bytes(buffer.getvalue())
    return open_archive(path)


def explained(forward, x: Tensor, rule: ReluRule) -> tuple[Tensor, Tensor | None]:
    leaf = x.clone()
    if x.is_floating_point():
        leaf.requires_grad_()
    values = forward(leaf * 1 if x.is_floating_point() else leaf)
    if not values.requires_grad:
        return values, None
    weights = torch.arange(1.0, values.numel() + 1, dtype=torch.float64).cos()
    with relu_rule(rule):
        (gradient,) = torch.autograd.grad((values * weights.view_as(values)).sum(), leaf)
    return values.detach(), gradient


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert torch.equal(found.isnan(), expected.isnan())
    scale = float(expected.nan_to_num().abs().max()) if expected.numel() else 1.0
    gap = float((found - expected).nan_to_num().abs().max()) if expected.numel() else 0.0
    assert gap <= tolerance * max(scale, 1.0)


def check(block: Block, form: str, dtype: torch.dtype, tolerance: float, path: Path) -> None:
    module = network(block, dtype)
    example = inputs(block, block.shape, 2, dtype)
    opened = archive(module, form, example, path)
    graph = lower(opened, [example]).graph
    guided = block.tokens == 0 and count_rectifiers(module, example) > 0
    for shape, rows in ((block.shape, 1), (block.shape, 5), (block.other, 3)):
        if shape is None:
            continue
        x = inputs(block, shape, rows, dtype)
        reference = module if shape is block.shape else fixed(opened, module, x)
        for rule in (ReluRule.PLAIN, ReluRule.GUIDED) if guided else (ReluRule.PLAIN,):
            found, expected = (explained(net, x, rule) for net in (graph, reference))
            close(found[0], expected[0], tolerance)
            assert (found[1] is None) == (expected[1] is None)
            if expected[1] is not None:
                close(found[1], expected[1], tolerance)


def fixed(opened: torch.jit.ScriptModule, module: nn.Module, x: Tensor) -> nn.Module:
    """The archive where its export has fixed what depends on sizes, else the eager module."""
    body = ArchiveBody(opened)
    with torch.no_grad():
        values, expected = body(x), module(x)
    return (
        module
        if torch.equal(values.isnan(), expected.isnan())
        and torch.allclose(values, expected, 1e-4, 1e-4, equal_nan=True)
        else body
    )


@pytest.mark.parametrize(("name", "form"), CELLS)
def test_a_block_equals_its_eager_module(name, form, tmp_path):
    check(ALL[name], form, torch.float64, 1e-10, tmp_path / "model.pt")


@pytest.mark.parametrize("form", ["script", "trace"])
def test_a_row_padded_at_its_start_is_served_as_alone(form, tmp_path):
    block = SEQUENCES["encoder_relu_last_padded"]
    module = network(block, torch.float64)
    example = inputs(block, block.shape, 2, torch.float64)
    tokens = torch.cat([inputs(block, block.shape, 3, torch.float64), example.flip(1)])
    opened = archive(module, form, example.flip(1), tmp_path / "model.pt")
    graph = lower(opened, [example]).graph
    with torch.no_grad():
        found = graph(tokens)
        for row, values in zip(tokens, found, strict=True):
            close(values[None], ArchiveBody(opened)(row[None]), 1e-10)


@pytest.mark.parametrize("name", ["embedding", "bag_sum", "bag_mean_padded", "bag_max", "table"])
@pytest.mark.parametrize("form", ["script", "trace"])
def test_embedded_tokens_are_a_layer_with_a_row_per_row(name, form, tmp_path):
    block = ALL[name]
    tokens = inputs(block, block.shape, 2, torch.float64)
    opened = archive(network(block, torch.float64), form, tokens, tmp_path / "model.pt")
    graph = lower(opened, [tokens]).graph
    nodes = [node for node in graph.graph.nodes if node.meta.get("kind") == "embedding"]
    embedded = graph.get_submodule(str(nodes[0].target))
    assert isinstance(embedded, nn.Embedding)
    assert len(nodes[0].args) == 1
    assert embedded(tokens).shape[:2] == tokens.shape


@pytest.mark.parametrize("name", NETWORKS)
def test_a_frozen_network_equals_its_eager_module_in_float32(name, tmp_path):
    form = "freeze_trace" if name in ("swin", "vit", "tcn") else "freeze_script"
    check(NETWORKS[name], form, torch.float32, 1e-5, tmp_path / "model.pt")


HALF = ["embedding", "group_norm", "attention", "own_rms_norm"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", HALF)
def test_half_precision_weights_keep_their_type(name, dtype, tmp_path):
    block = ALL[name]
    module = network(block, dtype)
    x = inputs(block, block.shape, 5, dtype)
    opened = archive(module, "script", x[:2], tmp_path / "model.pt")
    graph = lower(opened, [x[:2]]).graph
    found, expected = graph(x), module(x)
    assert found.dtype is dtype
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
