"""Metropolis steps, schedules, parallel chains, replay, other conditions, learned priors."""

import pytest
import torch
from torch import Tensor, nn

import interpret_client
from interpret_plugins.synthesis.langevin import Langevin
from interpret_server.noise import normal_rows
from interpret_server.plugin import Classifier, InvalidRequest, TargetKind, Targets
from interpret_server.registry import Registry
from interpret_server.testing import classifier, conformance, serve
from tests.plugins.synthesis.sampling import (
    STANDARD,
    Posterior,
    class_score,
    images,
    linear,
    plane,
    run,
)

STILL = {"equation": "three_term", "epsilon1": 0.0, "epsilon2": 0.0, "epsilon3": 0.0}


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def test_metropolis_steps_are_exact_where_plain_ones_are_biased() -> None:
    model = plane()
    truth = Posterior(model, 0)
    common = {"priors": STANDARD, "step_size": 1.6, "steps": 40, "burn_in": 10, "chains": 80}
    exact, biased = (
        run(model, [0] * 5, moments=True, keep=1, metropolis=metropolis, **common)
        for metropolis in (True, False)
    )
    for result, within in ((exact, True), (biased, False)):
        mean, variance = _given(result.mean), _given(result.variance)
        spread = variance.mean(0) + mean.var(0, correction=0)
        assert bool(((spread - truth.variance).abs() < 0.15).all()) is within
    torch.testing.assert_close(_given(exact.mean).mean(0), truth.mean, rtol=0, atol=0.08)
    last = _given(exact.samples)[:, :, -1].flatten(0, 1)
    assert truth.kolmogorov_smirnov(last[:, 0]) < 1.63 / 400**0.5
    rate = _given(exact.acceptance_rate)
    assert 0.4 < rate.mean() < 0.95
    assert biased.acceptance_rate is None


def test_metropolis_of_unequal_steps_is_exact_for_the_powers() -> None:
    model = plane()
    truth = Posterior(model, 1, a=4.0, b=2.0)
    result = run(
        model,
        [1] * 4,
        equation="three_term",
        epsilon1=0.4,
        epsilon2=0.8,
        epsilon3=0.4,
        priors=STANDARD,
        metropolis=True,
        chains=100,
        steps=40,
        keep=1,
    )
    last = _given(result.samples)[:, :, 0].flatten(0, 1)
    assert truth.kolmogorov_smirnov(last[:, 0]) < 1.63 / 400**0.5


def test_a_metropolis_step_by_hand() -> None:
    model, x = linear(), torch.randn(40, 5, dtype=torch.float64)
    classes, step = [0] * 40, 0.9

    def log_density(z: Tensor) -> Tensor:
        return model(z).log_softmax(1)[:, 0] - z.square().sum(1) / 2

    def mean(z: Tensor) -> Tensor:
        return z + step / 2 * (class_score(model, z, classes) - z)

    proposal = mean(x) + step**0.5 * normal_rows(range(40), 0, x)
    there = -(proposal - mean(x)).square().sum(1) / (2 * step)
    back = -(x - mean(proposal)).square().sum(1) / (2 * step)
    ratio = log_density(proposal) - log_density(x) + back - there
    result = run(model, classes, x, priors=STANDARD, metropolis=True, step_size=step, steps=1)
    taken = _given(result.acceptance_rate) == 1
    torch.testing.assert_close(result.images, torch.where(taken[:, None], proposal, x))
    assert taken[ratio >= 0].all()
    assert 0 < taken[ratio < 0].sum() < (ratio < 0).sum()
    expected = ratio.clamp(max=0).exp().sum().item()
    assert abs(taken.sum().item() - expected) < 4 * 40**0.5 / 2


@pytest.mark.parametrize(
    ("schedule", "last"),
    [("constant", 1.0), ("linear", 0.25), ("geometric", 0.25), ("polynomial", 3**-0.5)],
)
def test_schedules_scale_steps_and_the_variance_of_the_noise(schedule: str, last: float) -> None:
    model, x = linear(), torch.zeros(1, 5, dtype=torch.float64)
    options = {"equation": "three_term", "epsilon1": 0.1, "epsilon2": 0.0, "epsilon3": 0.5}
    steps = {"schedule": schedule, "schedule_end": 0.25, "schedule_power": 0.5, "steps": 3}
    result = run(model, [0], x, priors=STANDARD, keep=2, **options, **steps)
    before, after = _given(result.samples)[0, 0]
    noise = normal_rows((0,), 2, x)[0]
    expected = (1 - 0.1 * last) * before + (0.5 * last) ** 0.5 * noise
    torch.testing.assert_close(after, expected)


def test_one_step_of_the_plug_and_play_compatibility() -> None:
    model, x = linear(bounds=(-1.0, 1.0)), torch.rand(2, 5, dtype=torch.float64) - 0.5
    result = run(
        model,
        [0, 2],
        x,
        compatibility="ppgn",
        ppgn_rate=0.3,
        epsilon1=0.5,
        epsilon2=2.0,
        epsilon3=0.1,
        priors=STANDARD,
        steps=1,
    )
    weight = next(model.module.parameters())[[0, 2]].detach()
    chance = model(x).softmax(1)[[0, 1], [0, 2]]
    z = x / 2
    step = -0.5 * z + 2.0 * (1 - chance)[:, None] * 2 * weight + 0.1 * normal_rows((0, 1), 0, x)
    moved = z + 0.3 * step / step.abs().mean(1, keepdim=True)
    torch.testing.assert_close(result.images, 2 * moved.clamp(-0.5, 0.5))


def test_the_first_of_several_chains_is_the_one_alone() -> None:
    model = images()
    one = run(model, [0, 1], steps=10)
    three = run(model, [0, 1], steps=10, chains=3, keep=4, thinning=2)
    torch.testing.assert_close(three.images, one.images, rtol=0, atol=1e-10)
    samples = _given(three.samples)
    assert samples.shape == (2, 3, 4, 1, 6, 6)
    torch.testing.assert_close(samples[:, 0, -1], one.images, rtol=0, atol=1e-10)
    assert not torch.allclose(samples[0, 0], samples[0, 1])
    assert not torch.allclose(samples[0, 1], samples[0, 2])


def test_diagnostics_tell_mixed_chains_from_stuck_ones() -> None:
    model = plane()
    common = {"priors": STANDARD, "chains": 8, "start_noise": 3.0, "metropolis": True}
    mixed = run(model, [0], step_size=1.5, steps=300, burn_in=50, **common)
    stuck = run(model, [0], step_size=1e-3, steps=100, **common)
    assert _given(mixed.r_hat) < 1.05
    assert 200 < _given(mixed.effective_sample_size) < 2000
    assert _given(stuck.r_hat) > 1.5
    assert _given(stuck.effective_sample_size) < 20
    assert run(model, [0], steps=3).r_hat is None


def test_replay_goes_on_from_the_buffer_and_puts_states_back() -> None:
    model = linear()
    buffer = torch.randn(2, 4, 5, dtype=torch.float64)
    still = run(model, [0, 1], tensors={"buffer": buffer}, chains=3, keep=1, restart=0.0,
                 steps=1, **STILL)  # fmt: skip
    torch.testing.assert_close(_given(still.buffer), buffer)
    for row, samples in zip(buffer, _given(still.samples), strict=True):
        places = [(row - state).abs().sum(1).argmin().item() for state in samples[:, 0]]
        assert len(set(places)) == 3
        torch.testing.assert_close(row[places], samples[:, 0])
    moved = run(model, [0, 1], tensors={"buffer": buffer}, chains=3, keep=1, restart=0.0, steps=1)
    changed = (_given(moved.buffer) != buffer).any(2).sum(1)
    assert changed.tolist() == [3, 3]
    anew = run(model, [0], tensors={"buffer": buffer[:1]}, restart=1.0, steps=1, **STILL)
    assert not anew.images.any()


def test_rounds_work_through_a_buffer_of_their_own() -> None:
    model = images()
    result = run(model, [0, 1], rounds=6, buffer_size=5, start="uniform", steps=4, chains=2)
    buffer = _given(result.buffer)
    assert buffer.shape == (2, 5, 1, 6, 6)
    assert len(torch.unique(buffer.flatten(1), dim=0)) == 2
    assert result.r_hat is not None
    with pytest.raises(InvalidRequest, match="holds 2 states") as caught:
        run(model, [0], rounds=2, buffer_size=2, chains=3, steps=1)
    assert caught.value.violations[0].field == "params.buffer_size"
    with pytest.raises(InvalidRequest, match="states of shape"):
        run(model, [0], tensors={"buffer": torch.zeros(1, 3, 6, 6)}, steps=1)


def test_uniform_starts_fill_the_bounds() -> None:
    model = linear(bounds=(2.0, 6.0))
    result = run(model, [0] * 200, start="uniform", steps=1, **STILL)
    assert 2 <= result.images.min() < 2.1
    assert 5.9 < result.images.max() <= 6
    assert result.images.mean().item() == pytest.approx(4, abs=0.15)


def test_any_unit_conditions_by_its_value() -> None:
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    model = classifier(network, (5,), bounds=None)
    layer = next(iter(model.layers))
    targets = Targets(TargetKind.NEURON, torch.tensor([[1], [3]]), layer)
    x = torch.randn(2, 5, dtype=torch.float64)
    options = {"step_size": 0.2, "noise_variance": 0.0, "steps": 1, "condition_weight": 3.0}
    result = run(model, targets, x, priors=STANDARD, **options)
    expected = x + 0.1 * (3 * network[0].weight[[1, 3]].detach() - x)
    torch.testing.assert_close(result.images, expected)
    logit = run(model, [1, 2], x, priors=STANDARD, condition="value", **options)
    gradient = model.gradient(x, Targets.classes(torch.tensor([1, 2]))).inputs
    torch.testing.assert_close(logit.images, x + 0.1 * (3 * gradient - x))
    with pytest.raises(InvalidRequest, match="needs a class"):
        run(model, targets, x, condition="log_probability", steps=1)


class _Denoiser(nn.Module):
    """The best one for normal values of deviation 2 around 1, under noise of deviation 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.middle + (x - self.middle) * (4 / 4.25)


def _denoiser(size: int) -> Classifier:
    return classifier(_Denoiser().double(), (size,), bounds=None, values=True)


def test_a_denoiser_is_a_prior_and_has_no_metropolis_form() -> None:
    model, learned = plane(), {"prior": _denoiser(2)}
    prior = [{"plugin": "score_model", "params": {"sigma": 0.5}}]
    result = run(
        model, [0] * 4, models=learned, priors=prior, condition_weight=0.0, step_size=0.4,
        steps=60, burn_in=20, chains=60, moments=True,
    )  # fmt: skip
    assert result.log_prior is None
    assert result.energy is None
    assert _given(result.mean).mean().item() == pytest.approx(1, abs=0.25)
    spread = _given(result.variance).mean() + _given(result.mean).var(correction=0)
    assert spread.item() == pytest.approx(4.25 / (1 - 0.4 / 4.25 / 4), rel=0.15)
    with pytest.raises(InvalidRequest, match="no log density"):
        run(model, [0], models=learned, priors=prior, metropolis=True, steps=1)


def test_a_learned_prior_is_served_and_wrong_ones_are_refused() -> None:
    registry = Registry.installed()
    models = {"net": plane(), "denoiser": _denoiser(2)}
    with serve(registry, models) as address, interpret_client.connect(address) as client:
        params = {"priors": [{"plugin": "score_model", "params": {"sigma": 0.5}}], "steps": 5}
        roles = {"prior": "denoiser"}
        answer = client.run("langevin", "net", target=[0, 1], params=params, models=roles, seed=3)
        again = run(models["net"], [0, 1], None, (3, 4), models={"prior": models["denoiser"]},
                     **params)  # fmt: skip
        assert torch.allclose(torch.tensor(answer.tensors["images"]), again.images, atol=1e-6)
        asked = client.run("score_model", "net", again.images.numpy(), models=roles)
        assert asked.tensors["score"].shape == (2, 2)
        refusals = [
            ({"priors": ["score_model"]}, "prior"),
            ({"priors": ["nothing"]}, "params.priors.0.plugin"),
            (
                {"priors": [{"plugin": "gaussian", "params": {"std": 0}}]},
                "params.priors.0.params.std",
            ),
            ({"priors": ["gaussian", "total_variation"]}, "spatial axes"),
        ]
        for wrong, named in refusals:
            with pytest.raises(interpret_client.InvalidRequest, match=named.replace(".", r"\.")):
                client.run("langevin", "net", target=[0], params=wrong)


def test_chains_keep_the_contract() -> None:
    several = {"steps": 5, "chains": 2, "keep": 2, "rounds": 2, "buffer_size": 3, "moments": True}
    conformance(Langevin, params={**several, "metropolis": True, "start": "uniform"})
