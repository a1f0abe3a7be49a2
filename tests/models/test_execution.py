"""The faster form of a graph gives the canonical graph's bits."""

import pytest
import torch
from torch import Tensor, nn

from interpret_server.models import execution
from interpret_server.models.classifier import Classifier
from interpret_server.models.relu_rules import ReluRule, relu_rule
from interpret_server.plugin import Targets
from interpret_server.testing import classifier


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.sum = nn.ReLU()
        self.pool = nn.MaxPool2d((3, 2), stride=2, ceil_mode=True, dilation=(1, 2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x)
        y = self.relu(self.norm(y)) + y  # the convolution's output has two readers
        return self.head(self.pool(self.sum(x + y)).mean((2, 3)))


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def net(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Classifier:
    monkeypatch.setattr(execution, "_VECTORISED_VALUES", 0)
    torch.manual_seed(3)
    module = Net().to(request.param)
    module.norm.running_var.uniform_(0.5, 2)
    return classifier(module, (3, 33, 31), bounds=(0, 1))


@pytest.mark.parametrize("rule", list(ReluRule))
def test_values_and_gradients_are_those_of_the_canonical_module(
    net: Classifier, rule: ReluRule
) -> None:
    x = torch.rand(4, 3, 33, 31, dtype=net.dtype)
    targets = Targets.classes(torch.tensor([0, 1, 2, 4]))
    leaf = x.clone().requires_grad_()
    logits = net.module(leaf)
    with relu_rule(rule):
        (expected,) = torch.autograd.grad(targets.select(logits).sum(), leaf)
    for _ in range(3):
        found = net.gradient(x, targets, rule)
        assert torch.equal(net(x), logits)
        assert torch.equal(found.inputs, expected)


def test_something_is_replaced(net: Classifier) -> None:
    plan = execution.fast_form(net.module.body)
    assert isinstance(plan, torch.fx.GraphModule)
    targets = [getattr(node.target, "__name__", "") for node in plan.graph.nodes]
    assert targets.count("relu_") == 3
    assert targets.count("max_pool2d") == 2


def test_ties_and_borders_pool_as_they_do_in_torch() -> None:
    pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
    x = torch.randint(0, 2, (2, 16, 64, 64)).float().requires_grad_()
    ours, theirs = execution.max_pool2d(x, pool), pool(x)
    assert torch.equal(ours, theirs)
    weight = torch.rand_like(theirs)
    found, expected = (torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("place", ["body.first.1", "body.pool", "body", ""])
def test_a_hook_on_any_module_sees_its_values(net: Classifier, place: str) -> None:
    seen: list[Tensor] = []
    module = net.module.get_submodule(place)
    handle = module.register_forward_hook(lambda module, inputs, values: seen.append(values))
    x = torch.rand(1, 3, 33, 31, dtype=net.dtype)
    hooked = net(x)
    handle.remove()
    assert len(seen) == 1
    assert torch.equal(hooked, net(x))
    assert len(seen) == 1


def test_a_body_put_in_place_of_the_old_one_is_used(net: Classifier) -> None:
    x = torch.rand(2, 3, 33, 31, dtype=net.dtype)
    before = net(x)
    net.module.body = nn.Sequential(net.module.body, nn.Linear(5, 5, bias=False).to(net.dtype))
    assert torch.equal(net(x), net.module(x))
    assert not torch.equal(net(x), before)
