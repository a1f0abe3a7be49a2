"""Plans give the canonical graph's values and gradients: its bits, or as near to exact ones."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from interpret_server.models import execution
from interpret_server.models.classifier import Classifier
from interpret_server.models.execution import Execution, Plans, plans, pooling
from interpret_server.models.execution.draft import Draft, observe
from interpret_server.models.execution.folding import fold
from interpret_server.models.manifest import Precision
from interpret_server.models.relu_rules import ReluRule, relu_rule
from interpret_server.models.torchscript import lower
from interpret_server.plugin import Targets
from interpret_server.testing import classifier
from tests.stand_in_device import DEVICE, stand_in_device

SHAPE = (3, 33, 31)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class Net(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = norm(8)
        self.relu = nn.ReLU()
        self.third = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), norm(8), nn.ReLU6())
        self.sum = nn.ReLU()
        self.drop = nn.Dropout()
        self.pool = nn.MaxPool2d((3, 2), stride=2, ceil_mode=True, dilation=(1, 2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.relu(self.norm(self.second(x)))
        y = self.third(y) + x
        return self.head(self.pool(self.drop(self.sum(x + y))).mean((2, 3)))


def settled(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The module with batch norm statistics and weights that matter."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            if norm.running_var is not None:
                norm.running_var.uniform_(0.5, 2)
                norm.running_mean.normal_()
            if norm.affine:
                nn.init.uniform_(norm.weight, -1, 1)
                nn.init.normal_(norm.bias)
    return module.to(dtype).eval()


def bare(width: int) -> nn.Module:
    """In the place of a norm: nothing."""
    return nn.Identity()


@fx.wrap
def refuse_grey(x: Tensor) -> Tensor:
    if bool((x == 0.5).all()):
        raise ValueError("grey")
    return x


def served(how: Execution, dtype: torch.dtype = torch.float32, norm=nn.BatchNorm2d) -> Classifier:
    torch.manual_seed(3)
    model = classifier(settled(Net(norm), dtype), SHAPE, bounds=(0, 1))
    model.execution = how
    return model


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def gradient(module: Callable[[Tensor], Tensor], x: Tensor, rule: ReluRule) -> Tensor:
    leaf = x.clone().requires_grad_()
    values = module(leaf)
    with relu_rule(rule):
        return torch.autograd.grad(values[:, 1].sum(), leaf)[0]


@pytest.fixture(autouse=True)
def small_batches_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "_VECTORISED_VALUES", 0)


@pytest.mark.parametrize("rule", list(ReluRule))
@pytest.mark.parametrize(
    ("how", "norm", "dtype"),
    [
        (Execution.EXACT, nn.BatchNorm2d, torch.float32),
        (Execution.EXACT, nn.BatchNorm2d, torch.float64),
        (Execution.EXACT, bare, torch.float32),
        (Execution.AUTO, bare, torch.float64),
        (Execution.FAST, bare, torch.float64),
    ],
)
def test_bits_are_those_of_the_canonical_module(
    how: Execution, norm: Callable[[int], nn.Module], dtype: torch.dtype, rule: ReluRule
) -> None:
    net = served(how, dtype, norm)
    x = torch.rand(4, *SHAPE, dtype=dtype)
    expected = gradient(net.module, x, rule)
    for _ in range(3):
        assert torch.equal(net(x), net.module(x))
        found = net.gradient(x, Targets.classes(torch.ones(4, dtype=torch.int64)), rule)
        assert torch.equal(found.inputs, expected)


@pytest.mark.parametrize("rule", list(ReluRule))
@pytest.mark.parametrize("how", [Execution.AUTO, Execution.FAST])
def test_a_folded_network_is_the_same_in_float64(how: Execution, rule: ReluRule) -> None:
    net = served(how, torch.float64)
    x = torch.rand(4, *SHAPE, dtype=torch.float64)
    assert distance(net(x), net.module(x)) < 1e-12
    assert distance(gradient(net, x, rule), gradient(net.module, x, rule)) < 1e-12


@pytest.mark.parametrize("rule", list(ReluRule))
@pytest.mark.parametrize("how", list(Execution))
def test_plans_are_as_near_to_exact_gradients_as_the_canonical_module(
    how: Execution, rule: ReluRule
) -> None:
    net = served(how)
    exact = copy.deepcopy(net.module).double()
    x = torch.rand(32, *SHAPE)
    truth = gradient(exact, x.double(), rule)
    noise = distance(gradient(net.module, x, rule), truth)
    for _ in range(2):
        found = gradient(net, x, rule)
        assert distance(found, truth) <= max(1e-5, 4 * noise)
        assert found.is_contiguous()
        with torch.no_grad():
            assert distance(net(x), exact(x.double())) < 1e-6


@pytest.mark.parametrize("how", list(Execution))
def test_every_layer_is_read_and_differentiated(how: Execution) -> None:
    net = served(how)
    x = torch.rand(2, *SHAPE, requires_grad=True)
    hooked: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda module, inputs, values, name=name: hooked.update({name: values})
        )
        for name, module in net.module.body.named_modules()
        if not list(module.children())
    ]
    net.module(x)
    for handle in handles:
        handle.remove()
    for name, expected in hooked.items():
        (found,) = net.activations(x, [name])
        assert distance(found, expected) < 1e-5, name
        assert found.is_contiguous()
        weight = torch.randn_like(expected)
        ours, theirs = (
            torch.autograd.grad((value * weight).sum(), x, retain_graph=True)[0]
            for value in (found, expected)
        )
        assert distance(ours, theirs) < 1e-5, name
    names = list(hooked)
    for name, value in zip(names, net.activations(x, names), strict=True):
        assert distance(value, hooked[name]) < 1e-5, name


@pytest.mark.parametrize("how", list(Execution))
def test_a_later_layer_is_differentiated_by_an_earlier_one(how: Execution) -> None:
    net = served(how)
    x = torch.rand(2, *SHAPE, requires_grad=True)
    early, late = net.activations(x, ["second", "head"])
    (found,) = torch.autograd.grad(late[:, 0].sum(), early)
    exact = served(Execution.EXACT)
    early, late = exact.activations(x, ["second", "head"])
    (expected,) = torch.autograd.grad(late[:, 0].sum(), early)
    assert distance(found, expected) < 1e-5
    assert found.is_contiguous()


def test_something_is_replaced() -> None:
    def functions(how: Execution) -> list[str]:
        net = served(how)
        plan = net._plans.output(net.example)
        assert isinstance(plan, fx.GraphModule)
        return [getattr(n.target, "__name__", "") for n in plan.graph.nodes if n.op[:6] == "call_f"]

    exact, auto = functions(Execution.EXACT), functions(Execution.AUTO)
    assert exact.count("max_pool2d") == 2
    assert exact.count("relu_") == 3
    assert exact.count("hardtanh_") == 1
    assert auto.count("max_pool2d") == 0
    assert auto.count("enter") == 1


def test_all_but_single_convolutions_without_batch_norm_run_channels_last_by_themselves() -> None:
    def convolved(how: Execution, module: nn.Module, dtype: torch.dtype = torch.float32) -> bool:
        net = classifier(settled(module, dtype), SHAPE)
        net.execution = how
        plan = net._plans.output(net.example)
        weights = [m.weight for m in plan.modules() if isinstance(m, nn.Conv2d)]
        assert weights
        return all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)

    def one(*then: nn.Module, groups: int = 1) -> nn.Module:
        layers = [nn.Conv2d(3, 6, 3, groups=groups), *then, nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(6, 5))

    for chain in (Net(), Net(bare), one(nn.Conv2d(6, 6, 1))):
        assert not convolved(Execution.EXACT, chain)
        assert convolved(Execution.AUTO, chain)
        assert convolved(Execution.FAST, chain)
        assert not convolved(Execution.AUTO, chain, torch.float64)
    assert not convolved(Execution.AUTO, one(nn.ReLU()))
    assert convolved(Execution.FAST, one(nn.ReLU()))
    assert convolved(Execution.AUTO, one(groups=3))  # depthwise
    # A norm that cannot be folded: what is before it is a rectifier.
    assert convolved(Execution.AUTO, one(nn.ReLU(), nn.BatchNorm2d(6)))


# Folding


class Constant(nn.Module):
    """A layer, then arithmetic with constants."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = layer
        for name in ("a", "b", "c", "d"):
            self.register_buffer(name, torch.rand(shape) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c - 3 * ((self.layer(x) * self.a + self.b) / self.d - 2)


FOLDED = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (4, 9), 1),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), (4, 9, 8), 1),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6)), (2, 5, 6, 7), 1),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8)),
        (4, 9, 8),
        1,
    ),
    "reflected": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)
        ),
        (4, 9, 8),
        1,
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), nn.BatchNorm2d(6, affine=False)
        ),
        (4, 5, 6),
        1,
    ),
    "transposed1d": (
        lambda: nn.Sequential(nn.ConvTranspose1d(4, 6, 3, bias=False), nn.BatchNorm1d(6)),
        (4, 5),
        1,
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), (4,), 1),
    "constants": (lambda: Constant(nn.Conv2d(4, 6, 3), (6, 1, 1)), (4, 9, 8), 6),
    "constants of a linear layer": (lambda: Constant(nn.Linear(4, 6, False), (6,)), (5, 4), 6),
    "numbers": (lambda: Constant(nn.Conv1d(4, 6, 1), ()), (4, 7), 6),
}
KEPT = {
    "the rows of a series are normalised": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)),
        (6, 4),
    ),
    "along another axis": (lambda: Constant(nn.Conv2d(4, 6, 3), (6,)), (4, 9, 8)),
    "an activation between": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
        (4, 9, 8),
    ),
    "no statistics": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
        (4, 9, 8),
    ),
    "a scale beyond float32": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), Scaled(1e30), Scaled(1e30)),
        (4, 9, 8),
    ),
}


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def draft_of(module: nn.Module, shape: tuple[int, ...]) -> tuple[fx.GraphModule, Draft, Tensor]:
    dtype = next(module.parameters()).dtype
    graph = fx.symbolic_trace(settled(module, dtype)).requires_grad_(False)
    x = torch.rand(2, *shape, dtype=dtype)
    return graph, Draft.of(graph, observe(graph, x)), x


@pytest.mark.parametrize("name", FOLDED)
def test_what_follows_a_layer_is_folded_into_it(name: str) -> None:
    build, shape, count = FOLDED[name]
    torch.manual_seed(0)
    graph, draft, x = draft_of(build().double(), shape)
    state = {key: value.clone() for key, value in graph.state_dict().items()}
    assert len(fold(draft)) == count
    assert [node.op for node in draft.graph.nodes] == ["placeholder", "call_module", "output"]
    assert distance(draft.compile()(x), graph(x)) < 1e-14
    assert all(torch.equal(value, state[key]) for key, value in graph.state_dict().items())


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_folded_stays(name: str) -> None:
    build, shape = KEPT[name]
    torch.manual_seed(0)
    graph, draft, x = draft_of(build(), shape)
    fold(draft)
    plan = draft.compile()
    assert torch.allclose(plan(x), graph(x), equal_nan=True)
    if name != "along another axis":
        assert len(draft.graph.nodes) >= 4


def test_a_layer_read_elsewhere_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y + self.norm(y)

    graph, draft, x = draft_of(Twice().double(), (3, 8, 8))
    assert fold(draft) == []
    assert torch.equal(draft.compile()(x), graph(x))


# When plans are used, and when they are made anew


def test_ties_and_borders_pool_as_they_do_in_torch() -> None:
    pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
    x = torch.randint(0, 2, (2, 16, 64, 64)).float().requires_grad_()
    ours, theirs = execution.max_pool2d(x, *pooling.settings(pool)), pool(x)
    assert torch.equal(ours, theirs)
    weight = torch.rand_like(theirs)
    found, expected = (torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("place", ["body.first.1", "body.pool", "body.norm", "body", ""])
def test_a_hook_on_any_module_sees_its_values(place: str) -> None:
    net = served(Execution.AUTO)
    x = torch.rand(1, *SHAPE)
    before = net(x)
    seen: list[Tensor] = []
    module = net.module.get_submodule(place)
    handle = module.register_forward_hook(lambda module, inputs, values: seen.append(values))
    hooked = net(x)
    handle.remove()
    assert len(seen) == 1
    assert torch.equal(hooked, net.module(x))
    assert torch.equal(net(x), before)
    assert len(seen) == 1


def test_a_hook_changes_layers_too() -> None:
    net = served(Execution.AUTO)
    x = torch.rand(1, *SHAPE)
    handle = net.module.body.norm.register_forward_hook(lambda module, inputs, values: values * 0)
    changed = net.activations(x, ["relu"])[0]
    handle.remove()
    assert not changed.any()
    assert net.activations(x, ["relu"])[0].any()


def test_a_body_put_in_place_of_the_old_one_is_used() -> None:
    net = served(Execution.EXACT)
    x = torch.rand(2, *SHAPE)
    before = net(x)
    net.module.body = nn.Sequential(net.module.body, nn.Linear(5, 5, bias=False))
    assert torch.equal(net(x), net.module(x))
    assert not torch.equal(net(x), before)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "statistics": lambda body: body.norm.running_mean.add_(1.0),
    "a folded weight": lambda body: body.second.weight.mul_(0.5),
    "another parameter": lambda body: setattr(body.norm, "weight", nn.Parameter(torch.ones(8))),
    "a weight in another layout": lambda body: body.first.get_submodule("0").weight.mul_(-1),
    "a shared weight": lambda body: body.first.get_submodule("0").bias.add_(1.0),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", list(Execution))
def test_changed_weights_take_effect(how: Execution, change: str) -> None:
    net = served(how)
    x = torch.rand(2, *SHAPE)
    with torch.no_grad():
        before, layer = net(x), net.activations(x, ["sum"])[0]
        CHANGES[change](net.module.body)
        assert distance(net(x), net.module(x)) < 1e-5
        assert not torch.equal(net(x), before)
        assert not torch.equal(net.activations(x, ["sum"])[0], layer)


@pytest.mark.parametrize("how", [Execution.AUTO, Execution.FAST])
def test_plans_hold_one_copy_of_a_weight_together(how: Execution) -> None:
    net = served(how)
    plans = [net._plans.output(net.example)]
    plans += [net._plans.layers((net.layer(name).node,), net.example) for name in net.layers]
    kept = {p.data_ptr(): p.numel() for plan in plans for p in plan.parameters()}
    own = {p.data_ptr(): p.numel() for p in net.module.parameters()}
    added = sum(size for place, size in kept.items() if place not in own)
    convolutions = [m for m in net.module.modules() if isinstance(m, nn.Conv2d)]
    assert 0 < added <= 2 * sum(m.weight.numel() + 8 for m in convolutions)


def test_a_network_that_refuses_its_neutral_input_still_runs() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(refuse_grey(x))

    net = classifier(settled(Picky()), SHAPE, bounds=(0, 1))
    x = torch.rand(2, *SHAPE)
    assert torch.equal(net(x), net.module(x))
    seen: list[Tensor] = []
    norm = net.module.body.get_submodule("net.norm")
    handle = norm.register_forward_hook(lambda module, inputs, values: seen.append(values))
    net.module(x)
    handle.remove()
    assert torch.equal(net.activations(x, ["net.norm"])[0], seen[0])


def test_threads_share_plans() -> None:
    net = served(Execution.AUTO)
    x = torch.rand(8, 2, *SHAPE)
    expected = [gradient(served(Execution.AUTO), rows, ReluRule.PLAIN) for rows in x]
    found: list[Tensor | None] = [None] * len(x)
    barrier = threading.Barrier(len(x))

    def work(index: int) -> None:
        barrier.wait()
        for layer in list(net.layers)[index::3]:
            net.activations(x[index], [layer])
        found[index] = gradient(net, x[index], ReluRule.PLAIN)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(x))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        assert torch.equal(ours, theirs)


def test_operators_are_called_directly_with_the_same_bits() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = (x + 1) * x - 0.5 / (x.abs() + 1)
            y = torch.cat([y.permute(0, 2, 1).transpose(1, 2), y.exp().sqrt()], 1)
            y = y.reshape(x.size(0), -1, 4) @ torch.ones(4, 3)
            mean = y.tanh().mean((1,), True).unsqueeze(1).squeeze(1)
            return (mean + y.sigmoid().sum((1,), True)).flatten(1)

    archive = torch.jit.trace(Mixed().eval(), torch.rand(2, 3, 4))
    graph = lower(archive, (torch.rand(2, 3, 4),)).graph
    plan = Plans(graph, graph, Execution.EXACT).output(lambda: torch.rand(2, 3, 4))
    assert any(isinstance(node.target, torch._ops.OpOverload) for node in graph.graph.nodes)
    assert not any(isinstance(node.target, torch._ops.OpOverload) for node in plan.graph.nodes)
    for rows in (1, 5):
        x = torch.rand(rows, 3, 4)
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        values = [form(leaf) for form, leaf in zip((graph, plan), leaves, strict=True)]
        assert torch.equal(*values)
        assert torch.equal(
            *(torch.autograd.grad(v.sum(), leaf)[0] for v, leaf in zip(values, leaves, strict=True))
        )


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("how", list(Execution))
def test_tensor_cores_get_channels_last(
    how: Execution, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in passes for a GPU here; what rounds there does not round on it."""
    monkeypatch.setattr(plans, "_TENSOR_CORES", DEVICE.type)
    x = torch.rand(3, *SHAPE)
    expected = gradient(served(Execution.EXACT), x, ReluRule.PLAIN)
    with stand_in_device():
        net = served(how).to(DEVICE)
        monkeypatch.setattr(net.module, "precision", precision)
        net._prepare()
        monkeypatch.setattr(net.module, "precision", Precision.FLOAT32)
        plan = net.plans.output(net.example)
        found = gradient(net, x.to(DEVICE), ReluRule.PLAIN).to("cpu")
    layers = [m for m in plan.modules() if isinstance(m, nn.Conv2d)]
    last = precision is not Precision.FLOAT32 and how is not Execution.EXACT
    for layer in layers:
        assert type(layer) is nn.Conv2d  # neither narrow nor steady, which are the CPU's
        assert layer.weight.is_contiguous(memory_format=torch.channels_last) == last
    assert net.plans.channels_last == last
    assert distance(found, expected) < 1e-5
