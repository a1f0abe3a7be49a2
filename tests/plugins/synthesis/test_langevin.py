"""Langevin sampling: single steps exactly, stationary laws against integration on a grid."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributions import Normal

from interpret_plugins.synthesis.langevin import Langevin, LangevinParams, LangevinResult
from interpret_plugins.synthesis.spatial import Axes, total_variation
from interpret_server.noise import normal_rows
from interpret_server.plugin import Batch, Classifier, InvalidRequest, Job, Targets
from interpret_server.testing import classifier, conformance

STANDARD = [{"plugin": "gaussian", "params": {"std": 1.0}}]


def _run(
    model: Classifier,
    classes: Sequence[int],
    seeds: Sequence[int] | None = None,
    inputs: Tensor | None = None,
    **params: object,
) -> LangevinResult:
    batch = Batch(
        model.neutral(len(classes)) if inputs is None else inputs,
        Targets.classes(torch.tensor(classes)),
        tuple(range(len(classes)) if seeds is None else seeds),
        has_inputs=inputs is not None,
    )
    made = LangevinParams.model_validate(params)
    plugin = Langevin()
    plugin.check(model, made)
    return plugin.run(model, batch, made, Job())


def _linear(size: int = 5, bounds: tuple[float, float] | None = None) -> Classifier:
    return classifier(nn.Linear(size, 3).double(), (size,), bounds=bounds)


def _images() -> Classifier:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    return classifier(network.double(), (1, 6, 6), input_layout="CHW")


def _class_score(model: Classifier, x: Tensor, classes: Sequence[int]) -> Tensor:
    leaf = x.clone().requires_grad_()
    log_prob = model(leaf).log_softmax(1)[torch.arange(len(x)), torch.tensor(classes)]
    (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
    return gradient


def test_three_terms_without_noise_shrink_and_climb() -> None:
    model, x = _linear(), torch.randn(2, 5, dtype=torch.float64)
    result = _run(
        model,
        [0, 2],
        inputs=x,
        equation="three_term",
        epsilon1=0.1,
        epsilon2=1.0,
        epsilon3=0.0,
        priors=STANDARD,
        steps=1,
    )
    expected = (1 - 0.1) * x + _class_score(model, x, [0, 2])
    torch.testing.assert_close(result.images, expected, rtol=0, atol=1e-15)


def test_epsilon3_is_a_variance() -> None:
    model, x = _linear(), torch.zeros(2, 5, dtype=torch.float64)
    options = {"equation": "three_term", "epsilon1": 0.0, "epsilon2": 0.0, "steps": 1}
    result = _run(model, [0, 0], (7, 8), x, epsilon3=0.25, **options)
    torch.testing.assert_close(result.images, 0.5 * normal_rows((7, 8), 0, x))


@pytest.mark.parametrize("variance", [None, 0.0, 0.09])
def test_one_langevin_step_in_the_bounds_units(variance: float | None) -> None:
    model = _linear(bounds=(-1.0, 3.0))
    x = torch.rand(2, 5, dtype=torch.float64)
    noise = normal_rows((0, 1), 0, x) * (0.04 if variance is None else variance) ** 0.5
    z = (x - 1) / 4
    gradient = 4 * _class_score(model, x, [1, 2]) - z / 0.3**2
    result = _run(model, [1, 2], inputs=x, step_size=0.04, noise_variance=variance, steps=1)
    torch.testing.assert_close(result.images, 1 + 4 * (z + 0.02 * gradient + noise))


def test_metrics_are_the_energy_and_its_terms() -> None:
    model = _images()
    both = [
        {"plugin": "gaussian", "params": {"std": 0.4}},
        {"plugin": "total_variation", "params": {"weight": 3.0}},
    ]
    result = _run(model, [1, 2], priors=both, steps=5)
    z, axes = result.images - 0.5, Axes((2, 3), (1,))
    log_class = model(result.images).log_softmax(1)[[0, 1], [1, 2]]
    normal = Normal(torch.zeros(()).double(), 0.4).log_prob(z).flatten(1).sum(1)
    log_prior = normal - 3.0 * total_variation(z, axes)
    torch.testing.assert_close(result.log_prob_class, log_class)
    torch.testing.assert_close(result.log_prior, log_prior)
    torch.testing.assert_close(result.energy, log_class + log_prior)


class _Posterior:
    """`p(x1, x2) ~ p(c|x)^a N(x; 0, I)^b` of a linear softmax, integrated on a grid."""

    def __init__(self, model: Classifier, label: int, a: float = 1.0, b: float = 1.0) -> None:
        self.axis = torch.linspace(-7, 7, 281, dtype=torch.float64)
        points = torch.cartesian_prod(self.axis, self.axis)
        log_density = a * model(points).log_softmax(1)[:, label] - b * points.square().sum(1) / 2
        density = log_density.softmax(0)
        self.mean = (density[:, None] * points).sum(0)
        self.variance = (density[:, None] * (points - self.mean).square()).sum(0)
        self.marginal = density.view(281, 281).sum(1).cumsum(0)

    def kolmogorov_smirnov(self, samples: Tensor) -> float:
        """Largest distance between the empirical and the true distribution function."""
        below = np.searchsorted(np.sort(samples.numpy()), self.axis.numpy() + 0.025)
        return float(np.abs(below / len(samples) - self.marginal.numpy()).max())


def _plane() -> Classifier:
    linear = nn.Linear(2, 3).double()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.5, -0.5], [-1.0, 1.0], [0.2, 0.8]]))
        linear.bias.zero_()
    return classifier(linear, (2,), bounds=None)


def test_samples_follow_the_posterior_ever_more_closely_as_steps_shrink() -> None:
    model = _plane()
    truth = _Posterior(model, 0)
    errors, distances = [], []
    for step_size in (1.6, 0.4, 0.1):
        steps = int(40 / step_size)
        result = _run(
            model,
            [0] * 400,
            priors=STANDARD,
            step_size=step_size,
            steps=steps,
            burn_in=steps // 5,
            moments=True,
        )
        assert result.mean is not None
        assert result.variance is not None
        between = result.mean.var(0, correction=0)
        variance = result.variance.mean(0) + between
        error = (result.mean.mean(0) - truth.mean).abs() + (variance - truth.variance).abs()
        errors.append(float(error.sum()))
        distances.append(truth.kolmogorov_smirnov(result.images[:, 0]))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.15
    assert distances[0] > distances[2]
    assert distances[2] < 1.63 / 400**0.5  # the 1% critical value


def test_unequal_steps_sample_the_powers_of_the_two_densities() -> None:
    model = _plane()
    truth = _Posterior(model, 1, a=4.0, b=2.0)
    result = _run(
        model,
        [1] * 400,
        equation="three_term",
        priors=STANDARD,
        epsilon1=0.05,
        epsilon2=0.1,
        epsilon3=0.05,
        steps=150,
        burn_in=50,
        moments=True,
    )
    assert result.mean is not None
    torch.testing.assert_close(result.mean.mean(0), truth.mean, rtol=0, atol=0.05)
    assert truth.kolmogorov_smirnov(result.images[:, 0]) < 1.63 / 400**0.5


def test_variance_of_unadjusted_steps_on_a_gaussian_is_the_known_biased_one() -> None:
    flat = nn.Linear(2, 2).double()
    with torch.no_grad():
        flat.weight.zero_()
    model = classifier(flat, (2,), bounds=None)
    result = _run(
        model, [0] * 300, priors=STANDARD, step_size=1.0, steps=150, burn_in=20, moments=True
    )
    assert result.mean is not None
    assert result.variance is not None
    variance = result.variance.mean() + result.mean.var(correction=0)
    assert variance.item() == pytest.approx(1 / (1 - 1.0 / 4), rel=0.03)


def test_moments_are_those_of_the_thinned_states() -> None:
    model = _linear(bounds=(0.0, 2.0))
    states = [_run(model, [1], steps=steps).images for steps in (5, 7, 9)]
    result = _run(model, [1], steps=9, burn_in=3, thinning=2, moments=True)
    torch.testing.assert_close(result.mean, torch.stack(states).mean(0))
    torch.testing.assert_close(result.variance, torch.stack(states).var(0, correction=0))
    assert _run(model, [1], steps=2).mean is None


def test_a_row_alone_equals_the_row_in_a_batch_and_seeds_decide_it() -> None:
    model = _images()
    together = _run(model, [0, 1, 2], (5, 6, 5), steps=30).images
    alone = _run(model, [1], (6,), steps=30).images
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-10)
    again = _run(model, [0, 1, 2], (5, 6, 5), steps=30).images
    assert torch.equal(again, together)
    other = _run(model, [1], (7,), steps=30).images
    assert not torch.allclose(other[0], together[1])


def test_states_leave_the_bounds_unless_clamped() -> None:
    model = _images()
    free = _run(model, [0, 1], steps=100, step_size=0.05).images
    assert free.min() < 0
    assert free.max() > 1
    clamped = _run(model, [0, 1], steps=100, step_size=0.05, clamp=True).images
    assert 0 <= clamped.min() <= clamped.max() <= 1


def test_total_variation_alone_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidRequest, match="constant images free"):
        _run(_images(), [0], priors=[{"plugin": "total_variation"}])


def test_total_variation_smooths_samples() -> None:
    model = _images()
    smooth = [
        {"plugin": "gaussian", "params": {"std": 0.3}},
        {"plugin": "total_variation", "params": {"weight": 20.0}},
    ]
    rough, smoothed = (
        _run(model, [0] * 8, priors=priors, steps=150).images.diff(dim=3).square().mean()
        for priors in ([{"plugin": "gaussian", "params": {"std": 0.3}}], smooth)
    )
    assert smoothed < rough / 2


@pytest.mark.parametrize(
    "params",
    [
        {"priors": []},
        {"priors": [{"name": "gaussian"}]},
        {"metropolis": True, "clamp": True},
        {"metropolis": True, "noise_variance": 0.0},
        {"metropolis": True, "equation": "three_term", "epsilon3": 0.0},
        {"metropolis": True, "compatibility": "ppgn"},
        {"keep": 1, "steps": 5, "burn_in": 5},
        {"equation": "other"},
        {"epsilon3": -1.0},
        {"moments": True, "steps": 5, "burn_in": 5},
    ],
)
def test_bad_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LangevinParams.model_validate(params)


def test_signals_are_sampled() -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
    model = classifier(network, (2, 8), input_layout="CL")
    both = [{"plugin": "gaussian", "params": {"std": 0.3}}, {"plugin": "total_variation"}]
    assert _run(model, [0, 1], priors=both, steps=5).images.shape == (2, 2, 8)


def test_keeps_the_contract() -> None:
    conformance(Langevin, params={"steps": 5})
    conformance(Langevin, params={"steps": 5, "equation": "three_term", "moments": True})
