"""Langevin sampling: single steps exactly, stationary laws against integration on a grid."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.distributions import Normal

from interpret_plugins.synthesis.langevin import Langevin, LangevinParams
from interpret_plugins.synthesis.spatial import Axes, total_variation
from interpret_server.noise import normal_rows
from interpret_server.plugin import InvalidRequest
from interpret_server.testing import classifier, conformance
from tests.plugins.synthesis.sampling import (
    STANDARD,
    Posterior,
    class_score,
    images,
    linear,
    plane,
    run,
)


def test_three_terms_without_noise_shrink_and_climb() -> None:
    model, x = linear(), torch.randn(2, 5, dtype=torch.float64)
    result = run(
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
    expected = (1 - 0.1) * x + class_score(model, x, [0, 2])
    torch.testing.assert_close(result.images, expected, rtol=0, atol=1e-15)


def test_epsilon3_is_a_variance() -> None:
    model, x = linear(), torch.zeros(2, 5, dtype=torch.float64)
    options = {"equation": "three_term", "epsilon1": 0.0, "epsilon2": 0.0, "steps": 1}
    result = run(model, [0, 0], x, (7, 8), epsilon3=0.25, **options)
    torch.testing.assert_close(result.images, 0.5 * normal_rows((7, 8), 0, x))


@pytest.mark.parametrize("variance", [None, 0.0, 0.09])
def test_one_langevin_step_in_the_bounds_units(variance: float | None) -> None:
    model = linear(bounds=(-1.0, 3.0))
    x = torch.rand(2, 5, dtype=torch.float64)
    noise = normal_rows((0, 1), 0, x) * (0.04 if variance is None else variance) ** 0.5
    z = (x - 1) / 4
    gradient = 4 * class_score(model, x, [1, 2]) - z / 0.3**2
    result = run(model, [1, 2], inputs=x, step_size=0.04, noise_variance=variance, steps=1)
    torch.testing.assert_close(result.images, 1 + 4 * (z + 0.02 * gradient + noise))


def test_metrics_are_the_energy_and_its_terms() -> None:
    model = images()
    both = [
        {"plugin": "gaussian", "params": {"std": 0.4}},
        {"plugin": "total_variation", "params": {"weight": 3.0}},
    ]
    result = run(model, [1, 2], priors=both, steps=5)
    z, axes = result.images - 0.5, Axes((2, 3), (1,))
    log_class = model(result.images).log_softmax(1)[[0, 1], [1, 2]]
    normal = Normal(torch.zeros(()).double(), 0.4).log_prob(z).flatten(1).sum(1)
    log_prior = normal - 3.0 * total_variation(z, axes)
    torch.testing.assert_close(result.log_prob_class, log_class)
    torch.testing.assert_close(result.log_prior, log_prior)
    torch.testing.assert_close(result.energy, log_class + log_prior)


def test_samples_follow_the_posterior_ever_more_closely_as_steps_shrink() -> None:
    model = plane()
    truth = Posterior(model, 0)
    errors, distances = [], []
    for step_size in (1.6, 0.4, 0.1):
        steps = int(40 / step_size)
        result = run(
            model,
            [0] * 200,
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
    assert distances[2] < 1.63 / 200**0.5  # the 1% critical value


def test_unequal_steps_sample_the_powers_of_the_two_densities() -> None:
    model = plane()
    truth = Posterior(model, 1, a=4.0, b=2.0)
    result = run(
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
    result = run(
        model, [0] * 300, priors=STANDARD, step_size=1.0, steps=150, burn_in=20, moments=True
    )
    assert result.mean is not None
    assert result.variance is not None
    variance = result.variance.mean() + result.mean.var(correction=0)
    assert variance.item() == pytest.approx(1 / (1 - 1.0 / 4), rel=0.03)


def test_moments_are_those_of_the_thinned_states() -> None:
    model = linear(bounds=(0.0, 2.0))
    states = [run(model, [1], steps=steps).images for steps in (5, 7, 9)]
    result = run(model, [1], steps=9, burn_in=3, thinning=2, moments=True)
    torch.testing.assert_close(result.mean, torch.stack(states).mean(0))
    torch.testing.assert_close(result.variance, torch.stack(states).var(0, correction=0))
    assert run(model, [1], steps=2).mean is None


def test_a_row_alone_equals_the_row_in_a_batch_and_seeds_decide_it() -> None:
    model = images()
    together = run(model, [0, 1, 2], seeds=(5, 6, 5), steps=30).images
    alone = run(model, [1], seeds=(6,), steps=30).images
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-10)
    again = run(model, [0, 1, 2], seeds=(5, 6, 5), steps=30).images
    assert torch.equal(again, together)
    other = run(model, [1], seeds=(7,), steps=30).images
    assert not torch.allclose(other[0], together[1])


def test_states_leave_the_bounds_unless_clamped() -> None:
    model = images()
    free = run(model, [0, 1], steps=100, step_size=0.05).images
    assert free.min() < 0
    assert free.max() > 1
    clamped = run(model, [0, 1], steps=100, step_size=0.05, clamp=True).images
    assert 0 <= clamped.min() <= clamped.max() <= 1


def test_total_variation_alone_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidRequest, match="constant images free"):
        run(images(), [0], priors=[{"plugin": "total_variation"}])


def test_total_variation_smooths_samples() -> None:
    model = images()
    smooth = [
        {"plugin": "gaussian", "params": {"std": 0.3}},
        {"plugin": "total_variation", "params": {"weight": 20.0}},
    ]
    rough, smoothed = (
        run(model, [0] * 8, priors=priors, steps=150).images.diff(dim=3).square().mean()
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
    assert run(model, [0, 1], priors=both, steps=5).images.shape == (2, 2, 8)


def test_keeps_the_contract() -> None:
    conformance(Langevin, params={"steps": 5})
    conformance(Langevin, params={"steps": 5, "equation": "three_term", "moments": True})
