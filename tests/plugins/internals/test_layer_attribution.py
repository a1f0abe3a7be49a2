"""Layer attribution: Captum, closed forms, completeness, files, refusals."""

from pathlib import Path

import pytest
import torch
from captum.attr import LayerConductance, LayerGradientXActivation, LayerIntegratedGradients
from torch import Tensor, nn

from interpret_plugins.internals.layer_attribution import LayerAttribution
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.testing import classifier
from tests.plugins.internals.networks import (
    FORMS,
    SHAPE,
    Network,
    Recorder,
    classes,
    images,
    loaded,
    run,
)

PLUGIN = LayerAttribution()
X, LABELS = images(3), (1, 3, 0)


@pytest.mark.parametrize("form", FORMS)
def test_files_equal_captum_on_the_eager_module(form: str, tmp_path: Path) -> None:
    module = Network().eval()
    model = loaded(module, form, tmp_path)
    base = images(3, 9)
    labels, tensors = torch.tensor(LABELS), {"baseline": base}
    for layer, part in (("two", module.two), ("first", module.first), ("three", module.three)):
        assert layer in model.layers
        expected = LayerGradientXActivation(module, part).attribute(X.clone(), target=labels)
        found = run(PLUGIN, model, X, classes(*LABELS), layer=layer)
        torch.testing.assert_close(found.attributions, expected.detach(), rtol=1e-4, atol=1e-6)
        assert found.layer.tolist() == [list(model.layers).index(layer)] * 3
        assert found.convergence_delta is None

        expected = LayerIntegratedGradients(module, part).attribute(
            X, base, target=labels, n_steps=20
        )
        found = run(
            PLUGIN, model, X, classes(*LABELS), tensors=tensors, layer=layer,
            method="integrated_gradients", steps=20,
        )  # fmt: skip
        torch.testing.assert_close(found.attributions, expected.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.channels, expected.float().flatten(2).sum(2)
                                   if expected.dim() > 2 else expected.float(),
                                   rtol=1e-4, atol=1e-5)  # fmt: skip
        torch.testing.assert_close(found.logits, module(X).detach())

        expected = LayerConductance(module, part).attribute(
            X, base, target=labels, n_steps=400, method="riemann_middle"
        )
        found = run(
            PLUGIN, model, X, classes(*LABELS), tensors=tensors, layer=layer,
            method="conductance", steps=100,
        )  # fmt: skip
        # Captum's sum takes gradients at the beginnings of its 400 parts
        largest = float(expected.detach().abs().max())
        torch.testing.assert_close(
            found.attributions, expected.detach().float(), rtol=0, atol=0.02 * largest
        )


@pytest.mark.parametrize("method", ["integrated_gradients", "conductance"])
def test_the_integrals_sum_to_the_targets_difference_over_a_layer_that_all_paths_cross(
    method: str,
) -> None:
    module = Network().double().eval()
    model = classifier(module, SHAPE, input_layout="CHW")
    x, base = images(3).double(), images(3, 9).double()
    kinds = {
        "class": classes(*LABELS),
        "neuron": Targets(TargetKind.NEURON, torch.tensor([[4], [0], [2]]), "hidden"),
        "layer": Targets(TargetKind.LAYER, torch.zeros(3, 0, dtype=torch.int64), "three"),
    }
    for targets in kinds.values():
        difference = model.objective(x, targets)[0] - model.objective(base, targets)[0]
        for layer in ("first", "max_pool2d"):
            found = run(
                PLUGIN, model, x, targets, tensors={"baseline": base}, layer=layer, method=method,
                steps=400,
            )  # fmt: skip
            total = found.attributions.flatten(1).sum(1)
            torch.testing.assert_close(total, difference, rtol=0, atol=0.01)
            torch.testing.assert_close(found.channels.sum(1), total)
            torch.testing.assert_close(found.convergence_delta, total - difference)
            assert (found.logits is None) == (targets.layer is not None)


def test_what_passes_a_layer_by_stays_as_at_the_input() -> None:
    """`S = (a + b) c` with `b` past the layer: the layer's part is `a c`, exactly."""

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return (self.a(x[:, :2] * 3) + x[:, 2:4]) * x[:, 4:]

    model = classifier(Split().double(), (6,))
    x = torch.rand(2, 6, dtype=torch.float64)
    found = run(PLUGIN, model, x, classes(0, 1), layer="a", method="integrated_gradients", steps=1)
    expected = torch.zeros(2, 2, dtype=torch.float64)
    expected[0, 0], expected[1, 1] = 3 * x[0, 0] * x[0, 4], 3 * x[1, 1] * x[1, 5]
    torch.testing.assert_close(found.attributions, expected)
    torch.testing.assert_close(found.convergence_delta, torch.zeros(2, dtype=torch.float64))


def test_conductance_is_the_integral_of_the_chain_rule() -> None:
    """Against forward-mode derivatives in float64 at many points."""
    module = Network().double().eval()
    body, rest = module.first, [module.one, module.two, module.second]
    x, base = images(1).double(), images(1, 9).double()
    points, weights = (torch.linspace(0, 1, 401, dtype=torch.float64), torch.ones(401) / 400)
    weights[[0, -1]] /= 2
    one, two, second = rest[0], rest[1], rest[2]

    def inner(x: Tensor) -> Tensor:
        y = one(body(x))
        return two(second(y))

    def outer(y: Tensor, x: Tensor) -> Tensor:
        z = nn.functional.max_pool2d(one(body(x)) + y, 2).flatten(1)
        return module.last(module.three(module.hidden(z)))[0, 2]

    expected = torch.zeros_like(inner(x))
    for point, weight in zip(points, weights, strict=True):
        at = torch.lerp(base, x, point)
        value, change = torch.func.jvp(inner, (at,), (x - base,))
        expected += weight * torch.func.grad(outer)(value, at) * change
    model = classifier(module, SHAPE, input_layout="CHW")
    found = run(
        PLUGIN, model, x, classes(2), tensors={"baseline": base}, layer="two",
        method="conductance", steps=400,
    )  # fmt: skip
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(found.attributions, expected.detach(), rtol=0, atol=5e-3 * largest)


def test_the_default_layer_is_the_last_that_all_paths_cross() -> None:
    model = classifier(Network(), SHAPE)
    found = run(PLUGIN, model, X, classes(*LABELS), method="gradient")
    assert found.layer.tolist() == [list(model.layers).index("three")] * 3
    weight = model.module.body.get_submodule("last").weight
    torch.testing.assert_close(found.attributions, weight[list(LABELS)].detach())


@pytest.mark.parametrize("method", ["integrated_gradients", "conductance"])
@pytest.mark.parametrize(("limit", "passes"), [(1, 10), (6, 5), (64, 1)])
def test_points_that_share_a_pass_change_nothing(method: str, limit: int, passes: int) -> None:
    model = classifier(Network().double(), SHAPE)
    x, steps = X.double(), 10 if method == "integrated_gradients" else 9
    whole = run(PLUGIN, model, x, classes(*LABELS), layer="two", method=method, steps=steps)
    job = Recorder(limit)
    found = run(PLUGIN, model, x, classes(*LABELS), job, layer="two", method=method, steps=steps)
    assert job.steps == [passes + (method == "integrated_gradients")]
    torch.testing.assert_close(found.attributions, whole.attributions, rtol=1e-10, atol=1e-12)


def test_a_target_before_the_layer_is_refused() -> None:
    model = classifier(Network(), SHAPE)
    targets = Targets(TargetKind.CHANNEL, torch.tensor([[0], [1], [2]]), "first")
    with pytest.raises(InvalidRequest, match="'two' does not come before") as caught:
        run(PLUGIN, model, X, targets, layer="two")
    assert caught.value.violations[0].field == "params.layer"
    with pytest.raises(InvalidRequest, match="cross no single layer"):
        run(PLUGIN, model, X, targets)


def test_rows_without_any_attribution_are_warned_about() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        module[0].bias.fill_(-9)
        module[0].weight[:, 1] = 10
    job = Recorder()
    x = torch.tensor([[0.5, 0.0], [0.5, 1.0]])
    run(PLUGIN, classifier(module, (2,)), x, classes(0, 1), job, layer="1")
    assert [rows for rows, _ in job.warnings] == [[True, False]]
