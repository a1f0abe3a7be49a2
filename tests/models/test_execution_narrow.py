"""Convolutions of few channels have the gradients of any others."""

from typing import Any

import pytest
import torch
from torch import nn

from interpret_server.models.execution import Execution, narrow
from interpret_server.models.execution.draft import Draft
from interpret_server.models.execution.narrow import NarrowConv2d, narrow_convolutions
from interpret_server.models.execution.tidying import (
    pool_by_halves,
    rectify_after_pooling,
    work_in_place,
)
from interpret_server.models.targets import Targets
from interpret_server.testing import classifier
from tests.models.plan_checks import assert_same, called, draft_of, value_and_gradient

SIZES = [(1, 28, 28), (3, 17, 23), (4, 9, 8)]


def modules(draft: Draft) -> list[str]:
    return [type(draft.module(node)).__name__ for node in draft.graph.nodes if draft.module(node)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("kernel", "settings"),
    [
        (3, {"padding": 1}),
        (3, {"stride": 2, "bias": False}),
        ((5, 2), {"stride": (1, 2), "padding": (2, 1), "dilation": (1, 3)}),
        (1, {"padding": 1}),
    ],
)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_values_and_gradients_are_those_of_the_convolution(
    shape: tuple[int, ...],
    kernel: int | tuple[int, int],
    settings: dict[str, Any],
    layout: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(narrow, "_BLOCK_BYTES", 30_000)  # several blocks
    plain = nn.Conv2d(shape[0], 6, kernel, **settings).double().requires_grad_(False)
    plain.weight.data = plain.weight.data.contiguous(memory_format=layout)
    twin = NarrowConv2d.of(plain)
    x = torch.randn(7, *shape).double().contiguous(memory_format=layout).requires_grad_()
    weights = torch.randn_like(plain(x))
    found, expected = (
        torch.autograd.grad((layer(x).tanh() * weights).sum(), x, create_graph=True)[0]
        for layer in (twin, plain)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    again = (torch.autograd.grad(each.square().sum(), x)[0] for each in (found, expected))
    torch.testing.assert_close(*again, rtol=1e-11, atol=1e-11)
    assert torch.equal(twin(x), plain(x))


def test_only_what_has_few_channels_is_replaced() -> None:
    layers = [nn.Conv2d(3, 1, 3, 2), nn.Conv2d(1, 3, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)]
    grouped = nn.Conv2d(4, 4, 1, 2, groups=2)
    padded = [nn.Conv2d(4, 1, 3, padding="same"), nn.Conv2d(1, 4, 3, 1, 1, padding_mode="reflect")]
    graph, draft = draft_of(nn.Sequential(*layers, grouped, *padded), 3, 24, 24)
    narrow_convolutions(draft)
    assert modules(draft) == [*["NarrowConv2d"] * 2, *["Conv2d"] * 5]
    assert_same(draft, graph, (2, 3, 24, 24), (5, 3, 25, 19), tolerance=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("channels", "stride"), [(1, 1), (1, 2), (3, 2), (3, 3)])
def test_windows_that_overlap_are_left_to_several_threads(
    channels: int, stride: int, threads: int
) -> None:
    twin = NarrowConv2d.of(nn.Conv2d(channels, 4, 3, stride).requires_grad_(False))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        values = twin(torch.rand(2, channels, 9, 9, requires_grad=True))
    finally:
        torch.set_num_threads(before)
    assert ("_Convolve" in str(values.grad_fn)) == (threads == 1 or (channels, stride) != (3, 2))


def test_a_single_convolution_is_replaced_where_speed_is_asked_for() -> None:
    net = classifier(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)), (1, 8, 8)
    )
    for how in Execution:
        net.execution = how
        found = any(type(m) is NarrowConv2d for m in net.plans.output(net.example).modules())
        assert found == (how is Execution.FAST)


def test_changed_weights_take_effect() -> None:
    layer = nn.Conv2d(1, 4, 3)
    net = classifier(nn.Sequential(layer, nn.Flatten(), nn.Linear(144, 3)), (1, 8, 8))
    net.execution = Execution.FAST
    x = torch.rand(2, 1, 8, 8)
    net(x)
    with torch.no_grad():
        net.module.body.get_parameter("0.weight").mul_(2)
    torch.testing.assert_close(net(x), net.module(x))


@pytest.mark.parametrize("pool", [(2, 2), (2, 3), (3, 2)], ids=str)
def test_rectifying_after_pooling_changes_no_bit(pool: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(*pool), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(4, 2, 1), nn.MaxPool2d(1), nn.ReLU(),
    )  # fmt: skip
    graph, draft = draft_of(net, 1, 17, 19)
    rectify_after_pooling(draft)
    order = ["Conv2d", "MaxPool2d", "ReLU"]
    assert modules(draft) == 3 * order
    work_in_place(draft)
    assert_same(draft, graph, (5, 1, 17, 19), (2, 1, 24, 21))


def test_searches_run_in_the_fastest_form_unless_bits_count() -> None:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)]
    net = classifier(nn.Sequential(*layers), (1, 8, 8), bounds=(0, 1))
    x = torch.rand(4, 1, 8, 8)
    scout = net.scout
    assert scout is not net
    assert scout.scout is scout
    assert scout.bounds == net.bounds
    torch.testing.assert_close(scout(x), net(x))
    targets = Targets.classes(torch.tensor([0, 1, 2, 0]))
    found, expected = scout.gradient(x, targets).inputs, net.gradient(x, targets).inputs
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        net.module.body.get_parameter("4.bias").add_(1)
    torch.testing.assert_close(scout(x), net(x))
    net.module.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False)
    torch.testing.assert_close(net.scout(x), net(x))
    exact = classifier(nn.Sequential(*layers), (1, 8, 8))
    exact.execution = Execution.EXACT
    assert exact.scout is exact


def test_networks_without_a_faster_form_search_as_they_are() -> None:
    net = classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (1, 8, 8))
    assert net.scout is net


@pytest.mark.parametrize("shape", [(3, 8, 6), (2, 7, 4)], ids=str)
def test_pooling_by_halves_changes_no_bit(shape: tuple[int, ...]) -> None:
    graph, draft = draft_of(nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2, 1)), *shape)
    pool_by_halves(draft)
    assert called(draft) == ["halve"]
    plan = draft.compile()
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(4, *shape).contiguous(memory_format=layout)
        x[0, 0, 1, 1] = torch.nan
        torch.testing.assert_close(plan(x), graph(x), rtol=0, atol=0, equal_nan=True)
        found, expected = (value_and_gradient(form, x[1:])[1] for form in (plan, graph))
        assert torch.equal(found, expected)
