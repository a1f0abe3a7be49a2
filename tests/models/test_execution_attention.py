"""Attention that is written out runs by the fused kernel."""

import math
from collections.abc import Callable

import pytest
import torch
from plan_checks import assert_same, called, draft_of
from torch import Tensor, nn
from torch.nn import functional as F

from interpret_server.models.execution import Execution, Plans
from interpret_server.models.execution.attention import fuse_attention
from interpret_server.models.torchscript import lower

LENGTH, HEADS, WIDTH = 10, 2, 4
FUSED = "scaled_dot_product_attention"
Sides = tuple[Tensor, Tensor, Tensor]


class Net(nn.Module):
    """Attention over `(N, length, heads * width)`, written out by `attend`."""

    def __init__(self, attend: Callable[["Net", Sides], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.project = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)
        for parameter in self.project.parameters():
            parameter.data.normal_(generator=generator)
        self.softmax, self.attend = nn.Softmax(-1), attend
        self.register_buffer("root", torch.tensor(0.7, dtype=torch.float64))
        self.register_buffer("mask", torch.zeros(LENGTH, LENGTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        sides = self.project(x).reshape(-1, LENGTH, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        y = self.attend(self, tuple(sides.select(0, i) for i in range(3)))
        return y.reshape(-1, HEADS, LENGTH, WIDTH)


def product(net: Net, sides: Sides) -> Tensor:
    q, k, v = sides
    return net.softmax(q @ k.transpose(-2, -1)) @ v


def divided(net: Net, sides: Sides) -> Tensor:
    q, k, v = sides
    return net.softmax(torch.matmul(q, k.permute(0, 1, 3, 2)) / math.sqrt(WIDTH)) @ v


def by_size(net: Net, sides: Sides) -> Tensor:
    q, k, v = sides
    return torch.softmax(torch.matmul(q, k.transpose(2, 3)) / q.size(-1), -1) @ v


def on_both_sides(net: Net, sides: Sides) -> Tensor:
    q, k, v = sides
    return net.softmax(torch.matmul(net.root * q, k.transpose(-1, -2) * net.root) * 0.5) @ v


def keys_by_three_axes(net: Net, sides: Sides) -> Tensor:
    q, k, v = sides
    flat = torch.reshape(k, [-1, LENGTH, WIDTH])
    keys = torch.reshape(torch.permute(flat, (0, 2, 1)), [k.size(0), HEADS, WIDTH, LENGTH])
    return net.softmax(torch.matmul(q * net.root, keys)) @ v


def three_axes(net: Net, sides: Sides) -> Tensor:
    q, k, v = (side.reshape(-1, LENGTH, WIDTH) for side in sides)
    return torch.bmm(net.softmax(torch.bmm(q, k.transpose(1, 2)) * 0.5), v)


def keys_of_another_kind(net: Net, sides: Sides) -> Tensor:
    q, k, v = sides
    return net.softmax(torch.matmul(q, k.transpose(-1, -2).sin())) @ v


def masked(net: Net, sides: Sides) -> Tensor:
    q, k, v = sides
    return net.softmax(torch.matmul(q, k.transpose(-2, -1)) + net.mask) @ v


def over_queries(net: Net, sides: Sides) -> Tensor:
    q, k, v = sides
    return torch.softmax(torch.matmul(q, k.transpose(-2, -1)), 2) @ v


def weights_read_too(net: Net, sides: Sides) -> Tensor:
    q, k, v = sides
    weights = net.softmax(torch.matmul(q, k.transpose(-2, -1)))
    return weights @ v + weights.sum(-1, keepdim=True)


def scores_read_too(net: Net, sides: Sides) -> Tensor:
    q, k, v = sides
    scores = torch.matmul(q, k.transpose(-2, -1))
    return net.softmax(scores) @ v + scores.mean()


def by_a_vector(net: Net, sides: Sides) -> Tensor:
    q, k, v = sides
    return net.softmax(torch.matmul(q, k.transpose(-2, -1)) * net.mask[0]) @ v


def of_another_width(net: Net, sides: Sides) -> Tensor:
    q, k, v = sides
    wide = net.softmax(torch.matmul(q, k.transpose(-2, -1))) @ torch.cat([v, v], -1)
    return wide.unflatten(-1, (2, WIDTH)).sum(-2)


def of_zero(net: Net, sides: Sides) -> Tensor:
    q, k, v = sides
    return net.softmax(torch.matmul(q, k.transpose(-2, -1)) * 0) @ v


SPELLINGS = [
    product, divided, by_size, on_both_sides, keys_by_three_axes, three_axes, keys_of_another_kind
]  # fmt: skip
OTHERS = [
    masked, over_queries, weights_read_too, scores_read_too, by_a_vector, of_another_width, of_zero
]  # fmt: skip


@pytest.mark.parametrize("attend", SPELLINGS)
def test_every_spelling_is_fused(attend: Callable[[Net, Sides], Tensor]) -> None:
    graph, draft = draft_of(Net(attend), LENGTH, HEADS * WIDTH)
    fuse_attention(draft)
    names = called(draft)
    assert names.count(FUSED) == 1
    assert not {"matmul", "bmm", "softmax"} & set(names)
    assert_same(
        draft, graph, *((rows, LENGTH, HEADS * WIDTH) for rows in (1, 2, 7)), tolerance=1e-12
    )


@pytest.mark.parametrize("attend", OTHERS)
def test_other_products_stay(attend: Callable[[Net, Sides], Tensor]) -> None:
    graph, draft = draft_of(Net(attend), LENGTH, HEADS * WIDTH)
    before = called(draft)
    fuse_attention(draft)
    assert called(draft) == before
    assert_same(draft, graph, (5, LENGTH, HEADS * WIDTH))


def test_half_precision_stays() -> None:
    graph, draft = draft_of(Net(product).double(), LENGTH, HEADS * WIDTH)
    assert graph is not None
    for node, seen in draft.observed.items():
        draft.observed[node] = type(seen)(seen.shape, torch.bfloat16, seen.plain, seen.device)
    fuse_attention(draft)
    assert FUSED not in called(draft)


def test_a_changed_constant_changes_the_scale() -> None:
    net = Net(on_both_sides).double().eval()
    graph, _ = draft_of(net, LENGTH, HEADS * WIDTH)
    plans = Plans(graph, graph, Execution.AUTO)
    x = torch.rand(2, LENGTH, HEADS * WIDTH, dtype=torch.float64)
    before = plans.output(lambda: x)(x)
    graph.root.mul_(3)
    after = plans.output(lambda: x)(x)
    assert torch.allclose(after, graph(x), rtol=1e-12)
    assert not torch.allclose(after, before, rtol=1e-3)


@pytest.mark.parametrize("how", list(Execution))
def test_plans_of_an_archive_fuse_where_rounding_may_change(how: Execution) -> None:
    class Archived(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scores = torch.matmul(x, x.transpose(-2, -1)) / math.sqrt(x.size(-1))
            return torch.matmul(F.softmax(scores, dim=-1), x)

    example = torch.rand(2, 3, LENGTH, WIDTH)
    graph = lower(torch.jit.script(Archived().eval()), (example,)).graph
    plan = Plans(graph, graph, how).output(lambda: example)
    names = [getattr(node.target, "__name__", "") for node in plan.graph.nodes]
    assert (FUSED in names) == (how is not Execution.EXACT)
    x = torch.rand(5, 3, LENGTH, WIDTH)
    assert torch.allclose(plan(x), graph(x), atol=1e-6)


def test_a_network_is_as_near_to_exact_gradients_as_before() -> None:
    graph, draft = draft_of(Net(divided), LENGTH, HEADS * WIDTH)
    fuse_attention(draft)
    plan = draft.compile()
    x = torch.rand(16, LENGTH, HEADS * WIDTH)

    def gradient(form: nn.Module, x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(form(leaf).square().sum(), leaf)[0].double()

    truth = gradient(graph, x.double())
    found, expected = gradient(plan.float(), x), gradient(graph.float(), x)
    noise = (expected - truth).abs().max()
    assert (found - truth).abs().max() <= 4 * noise
