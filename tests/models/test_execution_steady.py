"""A row alone has the bits that it has among others."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interpret_server.models.classifier import Classifier
from interpret_server.models.execution import Execution, steady
from interpret_server.models.execution.narrow import NarrowConv2d
from interpret_server.models.execution.steady import LargeConv2d, SteadyConv2d
from interpret_server.models.targets import Targets
from interpret_server.testing import classifier

pytestmark = pytest.mark.skipif(not steady.available(), reason="torch without oneDNN")
LAYERS = [  # channels in and out, kernel, settings, height and width of the input
    (64, 256, 1, {}, (13, 13)),
    (48, 192, 3, {"padding": 1}, (13, 13)),
    (64, 64, 3, {"padding": 1, "stride": 2}, (16, 16)),
    (64, 64, 3, {"padding": 1, "stride": 2}, (15, 14)),
    (8, 24, (3, 5), {"padding": (0, 2), "stride": (1, 3), "dilation": (2, 1)}, (17, 20)),
    (16, 40, 3, {"bias": False, "dilation": 2}, (9, 12)),
    (32, 8, 1, {"stride": 2, "padding": 1}, (7, 7)),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def layer_and_rows(
    inner: int,
    outer: int,
    kernel: Any,
    settings: dict[str, Any],
    size: tuple[int, int],
    layout: torch.memory_format,
) -> tuple[nn.Conv2d, Tensor]:
    torch.manual_seed(3)
    layer = nn.Conv2d(inner, outer, kernel, **settings).requires_grad_(False)
    layer.weight.data = layer.weight.data.contiguous(memory_format=layout)
    return layer, torch.randn(16, inner, *size).contiguous(memory_format=layout)


def value_and_gradient(layer: nn.Module, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    value = layer(leaf)
    (gradient,) = torch.autograd.grad((value * weights[: len(x)]).sum(), leaf)
    return value.detach(), gradient


@pytest.fixture(params=[1, 2], ids="threads={}".format)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_a_layer_gives_few_rows_what_it_gives_many(case: Any, layout: torch.memory_format) -> None:
    layer, x = layer_and_rows(*case, layout)
    assert x[0].numel() <= steady._SMALL
    if layer.stride != (1, 1):  # oneDNN has other kernels for more rows
        x = x[:2]
    weights = torch.randn_like(layer(x))
    among = value_and_gradient(layer, x, weights)
    for rows in (1, 2, 5):
        fewer = value_and_gradient(SteadyConv2d.of(layer), x[:rows], weights)
        for ours, theirs in zip(fewer, among, strict=True):
            assert torch.equal(ours, theirs[:rows])


def test_by_torch_itself_a_row_alone_has_other_bits() -> None:
    """Else there is nothing to be mended, and the module can go."""
    for case in LAYERS:
        layer, x = layer_and_rows(*case, torch.contiguous_format)
        if not torch.equal(layer(x[:1]), layer(x)[:1]):
            return
    pytest.fail("torch gives a row alone the bits that it has among others")


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_the_second_derivative_is_there(case: Any) -> None:
    layer, x = layer_and_rows(*case, torch.contiguous_format)
    gradients = []
    exact = copy.deepcopy(layer).double()
    for module, rows in ((SteadyConv2d.of(layer), x[:1]), (exact, x[:1].double())):
        leaf = rows.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(leaf).tanh().sum(), leaf, create_graph=True)
        gradients.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-4, atol=1e-5)


def test_a_layer_of_few_channels_too() -> None:
    layer, x = layer_and_rows(3, 16, 3, {"padding": 1}, (32, 32), torch.channels_last)
    twin = NarrowConv2d.of(layer)
    leaf = x[:1].clone().requires_grad_()
    assert torch.equal(twin(leaf), layer(x)[:1])
    assert torch.equal(twin(x[:1]), layer(x)[:1])


@pytest.mark.parametrize("size", [(0, 8, 9, 9), (8, 9, 9), (1, 8, 60, 60), (2, 8, 9, 9)], ids=str)
def test_other_inputs_are_left_to_torch(size: tuple[int, ...]) -> None:
    layer = nn.Conv2d(8, 4, 3).requires_grad_(False)
    x = torch.randn(size, requires_grad=True)
    found = SteadyConv2d.of(layer)(x)
    assert torch.equal(found, layer(x))
    assert "Convolve" not in str(found.grad_fn)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(32, 48, 1),
            nn.ReLU(),
            nn.Conv2d(48, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 10, 1),
            nn.AvgPool2d(13),
            nn.Flatten(),
        )

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.features(x)
        return scores


@pytest.mark.usefixtures("threads")
def test_a_network_answers_a_row_alone_as_among_others() -> None:
    model = classifier(Network(), (3, 60, 60))
    x, targets = torch.rand(24, 3, 60, 60), Targets.classes(torch.arange(24) % 10)
    among = model.gradient(x, targets)
    for row in range(24):
        part = slice(row, row + 1)
        alone = model.gradient(x[part], targets.take(part))
        assert torch.equal(alone.inputs, among.inputs[part])
        assert alone.logits is not None
        assert among.logits is not None
        assert torch.equal(alone.logits, among.logits[part])


def test_small_convolutions_are_left_to_torch_where_speed_is_asked_for() -> None:
    model = classifier(Network(), (3, 60, 60))

    def kinds(model: Classifier) -> set[type]:
        modules = model.plans.output(model.example).modules()
        return {type(m) for m in modules if isinstance(m, nn.Conv2d)} - {NarrowConv2d}

    assert kinds(model.scout) == {LargeConv2d}
    for how, kind in {
        Execution.EXACT: nn.Conv2d,
        Execution.AUTO: SteadyConv2d,
        Execution.RECORDED: SteadyConv2d,
        Execution.FAST: LargeConv2d,
    }.items():
        model.execution = how
        assert kinds(model) == {kind}


@pytest.mark.parametrize(("rows", "stride", "large"), [(2, 1, False), (3, 1, True), (8, 2, False)])
def test_the_products_decide(rows: int, stride: int, large: bool) -> None:
    twin = LargeConv2d.of(nn.Conv2d(32, 32, 1, stride).requires_grad_(False))
    x = torch.rand(rows, 32, 32, 32, requires_grad=True)  # a million products a row
    assert ("Convolve" in str(twin(x).grad_fn)) == large
    torch.testing.assert_close(twin(x), nn.Conv2d.forward(twin, x))


def test_exact_keeps_the_modules_own_bits() -> None:
    network, x = Network(), torch.rand(1, 3, 60, 60)
    model = classifier(network, (3, 60, 60))
    model.execution = Execution.EXACT
    assert torch.equal(model(x), network(x))
