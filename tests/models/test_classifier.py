"""What plugins see of a model: logits, layers, gradients and the neutral input."""

import pytest
import torch
from torch import Tensor, nn

from interpret_server.errors import FailedPrecondition, InvalidRequest
from interpret_server.models.assembly import assemble, from_graph
from interpret_server.models.batching import InGroups
from interpret_server.models.classifier import Bounds, Capability, Classifier
from interpret_server.models.inputs import ResolvedInput
from interpret_server.models.manifest import OutputSpec
from interpret_server.models.network import ClassifierModule
from interpret_server.models.relu_rules import ReluRule
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.testing.classifiers import classifier, lowered

SHAPE = (3, 6, 6)
CLASSES = torch.tensor([4, 0, 2])


class Net(nn.Module):
    """A small network; `calls` counts how often its last layer runs."""

    def __init__(self, rows: int = -1) -> None:
        super().__init__()
        self.rows = rows
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.relu(self.conv(x))).reshape(self.rows, 36))


def _normalised(
    net: nn.Module, *, layout: str = "CHW", bounds: tuple[float, float] | None = (0.0, 255.0)
) -> Classifier:
    broadcast = (-1, 1, 1) if layout == "CHW" else (1, 1, -1)
    resolved = ResolvedInput(
        "x",
        SHAPE,
        layout,
        bounds=bounds and Bounds(*bounds),
        mean=torch.tensor([104.0, 117.0, 123.0]).reshape(broadcast),
        std=torch.tensor([58.0, 57.0, 59.0]).reshape(broadcast),
    )
    return assemble("net", from_graph(lowered(net), resolved, OutputSpec()), resolved)


def _eager(net: nn.Module, x: Tensor) -> Tensor:
    mean = torch.tensor([104.0, 117.0, 123.0]).reshape(3, 1, 1)
    std = torch.tensor([58.0, 57.0, 59.0]).reshape(3, 1, 1)
    return net((x - mean) / std)


def test_normalisation_is_inside_so_gradients_are_in_the_users_units() -> None:
    net = Net()
    model, x = _normalised(net), torch.rand(3, *SHAPE) * 255
    leaf = x.clone().requires_grad_()
    logits = _eager(net, leaf)
    (expected,) = torch.autograd.grad(logits.gather(1, CLASSES[:, None]).sum(), leaf)
    found = model.gradient(x, Targets.classes(CLASSES))
    assert torch.equal(model(x), logits.detach())
    assert found.logits is not None
    assert torch.equal(found.logits, logits.detach())
    assert torch.equal(found.inputs, expected)
    assert torch.equal(found.objective, logits.detach()[torch.arange(3), CLASSES])


def test_gradients_leave_the_input_and_the_weights_alone() -> None:
    net = Net()
    model, x = _normalised(net), torch.rand(2, *SHAPE)
    before = x.clone()
    model.gradient(x, Targets.classes(torch.tensor([1, 2])))
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in model.module.parameters())
    assert not model.module.training


def test_a_gradient_is_the_same_alone_and_in_a_batch() -> None:
    model, x = classifier(Net(), SHAPE), torch.rand(3, *SHAPE)
    together = model.gradient(x, Targets.classes(CLASSES)).inputs
    for row in range(3):
        alone = model.gradient(x[row : row + 1], Targets.classes(CLASSES[row : row + 1])).inputs
        torch.testing.assert_close(together[row : row + 1], alone)


def test_layers_have_names_kinds_and_row_shapes_in_order() -> None:
    layers = classifier(Net(), SHAPE).layers
    assert [(item.name, item.kind, item.shape) for item in layers.values()] == [
        ("conv", "conv2d", (4, 6, 6)),
        ("relu", "relu", (4, 6, 6)),
        ("pool", "maxpool2d", (4, 3, 3)),
        ("reshape", "reshape", (36,)),
        ("last", "linear", (5,)),
    ]


def test_what_does_not_depend_on_the_input_is_no_layer() -> None:
    class Constant(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.last.bias.abs()

    names = classifier(Constant(), SHAPE).layers
    assert "abs_1" not in names
    assert "add" in names


def test_activations_are_those_of_the_eager_network() -> None:
    net = Net()
    model, x = _normalised(net), torch.rand(2, *SHAPE) * 255
    relu, last = model.activations(x, ["relu", "last"])
    mean, std = torch.tensor([104.0, 117.0, 123.0]), torch.tensor([58.0, 57.0, 59.0])
    normal = (x - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    assert torch.equal(relu, net.relu(net.conv(normal)))
    assert torch.equal(last, net(normal))


def test_activations_run_no_more_than_they_need() -> None:
    net, calls = Net(), []
    model = classifier(net, SHAPE)
    model.module.body.get_submodule("last").register_forward_hook(lambda *_: calls.append(1))
    model.activations(torch.rand(2, *SHAPE), ["pool"])
    model.activations(torch.rand(2, *SHAPE), ["pool"])
    assert calls == []
    model.activations(torch.rand(2, *SHAPE), ["pool", "last"])
    assert calls == [1]


def test_a_layers_gradient_is_autograds() -> None:
    net = Net()
    model, x = classifier(net, SHAPE), torch.rand(2, *SHAPE)
    targets = Targets(TargetKind.CHANNEL, torch.tensor([[1], [3]]), "relu")
    leaf = x.clone().requires_grad_()
    values = net.relu(net.conv(leaf))
    (expected,) = torch.autograd.grad(values[0, 1].mean() + values[1, 3].mean(), leaf)
    found = model.gradient(x, targets)
    torch.testing.assert_close(found.inputs, expected)
    assert found.logits is None


def test_many_plans_are_forgotten_again() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(40))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    model, x = classifier(Deep(), (4,)), torch.rand(2, 4)
    values = [model.activations(x, [name])[0] for name in model.layers]
    again = [model.activations(x, [name])[0] for name in model.layers]
    assert len(model._plans) < len(model.layers)
    assert all(torch.equal(a, b) for a, b in zip(values, again, strict=True))


def test_an_unknown_layer_is_answered_with_close_names() -> None:
    with pytest.raises(InvalidRequest, match=r"net has no layer 'relu1'; did you mean relu"):
        classifier(Net(), SHAPE, name="net").activations(torch.rand(1, *SHAPE), ["relu1"])


def test_targets_are_checked_against_the_model() -> None:
    model = classifier(Net(), SHAPE, name="net")
    model.check_targets(Targets.none(2))
    model.check_targets(Targets.classes(torch.tensor([4])))
    model.check_targets(Targets(TargetKind.NEURON, torch.tensor([[3, 5, 5]]), "relu"))
    with pytest.raises(InvalidRequest, match="net's output has 0 to 4"):
        model.check_targets(Targets.classes(torch.tensor([5])))
    with pytest.raises(InvalidRequest, match="layer relu has 0 to 3"):
        model.check_targets(Targets(TargetKind.CHANNEL, torch.tensor([[4]]), "relu"))


def test_without_bounds_the_sentence_says_what_to_state() -> None:
    model = classifier(Net(), SHAPE, bounds=None)
    assert Capability.BOUNDS not in model.capabilities
    with pytest.raises(FailedPrecondition, match=r"give inputs\[0\].bounds"):
        _ = model.bounds
    assert model.scale == 1.0
    assert torch.equal(model.neutral(2), torch.zeros(2, *SHAPE))


def test_the_neutral_input_is_the_mean_or_the_middle() -> None:
    assert _normalised(Net()).neutral(2)[1, 2].unique().tolist() == [123.0]
    assert classifier(Net(), SHAPE, bounds=(-1.0, 3.0)).neutral(1).unique().tolist() == [1.0]
    assert classifier(Net(), SHAPE, bounds=(-1.0, 3.0)).scale == 4.0


def test_a_network_without_rectifiers_lacks_them_with_the_reason() -> None:
    model = classifier(nn.Sequential(nn.Flatten(), nn.Linear(108, 3), nn.Tanh()), SHAPE)
    assert Capability.GRADIENT in model.capabilities
    assert "no rectifier" in model.lacking[Capability.RECTIFIERS]


def test_an_operator_without_a_gradient_is_named() -> None:
    class Rounded(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).gt(0).float()

    model = classifier(Rounded(), SHAPE)
    assert model.capabilities == set(Capability) - {Capability.GRADIENT, Capability.RECTIFIERS}
    assert "gt at gt has none" in model.lacking[Capability.GRADIENT]
    assert model.lacking[Capability.RECTIFIERS] == model.lacking[Capability.GRADIENT]


@pytest.mark.parametrize("rows", [1, 2])
def test_a_network_of_one_batch_size_takes_any(rows: int) -> None:
    free = Net()
    fixed = Net(rows)
    fixed.load_state_dict(free.state_dict())
    resolved = ResolvedInput("x", SHAPE, bounds=Bounds(0, 1), fixed_batch=rows)
    body = from_graph(lowered(fixed), resolved, OutputSpec())
    model, expected = assemble("net", body, resolved), classifier(free, SHAPE)
    assert "the file takes no other batch size" in body.reason
    x, targets = torch.rand(3, *SHAPE), Targets.classes(CLASSES)
    torch.testing.assert_close(model(x), expected(x))
    for rule in ReluRule:
        torch.testing.assert_close(
            model.gradient(x, targets, rule).inputs, expected.gradient(x, targets, rule).inputs
        )
    for found, value in zip(
        model.activations(x, ["relu", "last"]),
        expected.activations(x, ["relu", "last"]),
        strict=True,
    ):
        torch.testing.assert_close(found, value)
    assert model.layers.keys() == expected.layers.keys()
    assert model(x[:0]).shape == (0, 5)


def test_a_squeeze_does_not_drop_the_axis_of_a_single_row() -> None:
    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.conv(x)).squeeze()

    net = Squeezing()
    model, x = classifier(net, SHAPE), torch.rand(3, *SHAPE)
    assert torch.equal(model(x), net(x))
    assert torch.equal(model(x[:1]), net(x)[:1])
    assert list(model.layers) == ["conv", "pool"]


def test_rows_that_influence_each_other_run_one_at_a_time() -> None:
    class Mixing(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(0, keepdim=True) * 0.5)

    resolved = ResolvedInput("x", SHAPE, bounds=Bounds(0, 1))
    body = from_graph(lowered(Mixing()), resolved, OutputSpec())
    model, x = assemble("net", body, resolved), torch.rand(3, *SHAPE)
    assert "its rows influence each other" in body.reason
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


def test_a_random_network_is_not_taken_for_one_that_mixes_rows() -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.dropout(x, 0.5, True))

    resolved = ResolvedInput("x", SHAPE, bounds=Bounds(0, 1))
    assert not isinstance(from_graph(lowered(Noisy()), resolved, OutputSpec()).module, InGroups)


def test_half_precision_weights_are_served_in_float32() -> None:
    net = Net().half()
    resolved = ResolvedInput("x", SHAPE, bounds=Bounds(0, 1))
    body = from_graph(lowered(net), resolved, OutputSpec())
    model, x = assemble("net", body, resolved), torch.rand(2, *SHAPE)
    assert body.notes == ["The file's weights are float16; the network computes in float32."]
    assert model(x).dtype is torch.float32
    torch.testing.assert_close(model(x), net.float()(x))


def test_a_plain_network_is_served_with_nothing_around_it() -> None:
    module = classifier(Net(), SHAPE).module
    assert isinstance(module, ClassifierModule)
    assert isinstance(module.normalise, nn.Identity)
    assert isinstance(module.head, nn.Identity)
    assert isinstance(module.body, torch.fx.GraphModule)
