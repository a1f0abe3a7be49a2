"""Graphs that compute in half precision, turned into float32."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import InputSpec, Manifest
from interpret_server.models.precision import to_single

HALF = (torch.float16, torch.bfloat16)


class _Casting(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.second, self.dtype = nn.Linear(6, 8), nn.Linear(8, 3), dtype

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x)).to(self.dtype)
        return self.second((y * y).float())


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_casts_in_between_become_float32(dtype):
    torch.manual_seed(0)
    network = _Casting(dtype).eval()
    graph, x = fx.symbolic_trace(network), torch.randn(5, 6)
    (note,) = to_single(graph)
    assert str(dtype).removeprefix("torch.") in note
    exact = network.second(torch.relu(network.first(x)) ** 2)
    torch.testing.assert_close(graph(x), exact, rtol=1e-6, atol=1e-6)
    assert (network(x) - exact).abs().max() > 1e-5


@pytest.mark.parametrize("how", [Tensor.half, Tensor.bfloat16, "half", "bfloat16"], ids=str)
def test_methods_that_cast_become_float32(how):
    graph = fx.Graph()
    x = graph.placeholder("x")
    call = graph.call_method if isinstance(how, str) else graph.call_function
    graph.output(call(how, (x,)))
    module = fx.GraphModule(nn.Module(), graph)
    assert to_single(module)
    x = torch.randn(4)
    assert torch.equal(module(x), x)


def test_a_float32_graph_stays_as_it_is():
    graph = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert to_single(graph) == []


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_an_archive_traced_under_autocast_is_served_in_float32(dtype, tmp_path: Path):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3)), torch.randn(5, 6)
    with torch.autocast("cpu", dtype, cache_enabled=False):
        archive = torch.jit.trace(network.eval().requires_grad_(False), x)
    archive.save(str(tmp_path / "model.pt"))
    manifest = Manifest(inputs=[InputSpec(shape=[6])])
    loaded = load_classifier("auto", tmp_path / "model.pt", manifest, device=torch.device("cpu"))
    classifier = loaded.classifier
    assert any("computes in float32" in note for note in loaded.info.notes)
    assert loaded.info.verification.inputs
    torch.testing.assert_close(classifier(x), network(x), rtol=2e-2, atol=2e-2)
