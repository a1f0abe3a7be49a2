"""Infidelity and maximum sensitivity, against Captum and closed forms."""

from pathlib import Path

import pytest
import torch
from captum.attr import IntegratedGradients, Saliency
from captum.metrics import infidelity, sensitivity_max
from judging import (
    FORMS,
    LABELS,
    SEEDS,
    Recorder,
    batch_of,
    close,
    eager,
    flat,
    images,
    loaded,
    network,
    run,
)
from torch import Tensor

from interpret_plugins.metrics.infidelity import Infidelity
from interpret_plugins.metrics.max_sensitivity import MaxSensitivity
from interpret_server.noise import generator

SAMPLES = 7
SIGNED = {"plugin": "saliency", "params": {"absolute": False}}


def normal(shape: torch.Size) -> Tensor:
    draws = [torch.randn(shape, generator=generator(s, k)) for s in SEEDS for k in range(SAMPLES)]
    return torch.stack(draws)


def uniform(shape: torch.Size) -> Tensor:
    draws = [torch.rand(shape, generator=generator(s, k)) for s in SEEDS for k in range(SAMPLES)]
    return torch.stack(draws)


def test_the_gradient_of_a_linear_model_has_none() -> None:
    weight = torch.randn(4, 9, dtype=torch.float64)
    x = torch.rand(3, 9, dtype=torch.float64)
    found = run(Infidelity(), flat(weight, 0.3), batch_of(x))
    assert float(found.infidelity.max()) < 1e-24
    removal = {"perturbation": "removal", "fill": 0.2}
    assert float(run(Infidelity(), flat(weight), batch_of(x), **removal).infidelity.max()) < 1e-24
    shares = {"plugin": "input_x_gradient"}
    found = run(
        Infidelity(), flat(weight), batch_of(x), method=shares, attribution="share", fill="zero"
    )
    assert float(found.infidelity.max()) < 1e-24


def test_a_linear_model_s_gradient_times_three_is_wrong_until_it_is_scaled() -> None:
    weight, x = torch.randn(4, 9, dtype=torch.float64), torch.rand(3, 9, dtype=torch.float64)
    batch = batch_of(x, attributions=3 * weight[LABELS])
    found = run(Infidelity(), flat(weight), batch, noise=0.1, samples=20_000)
    # E[(2 w . I)^2] = 4 |w|^2 sigma^2, with sigma a tenth of the bounds' width of 8.
    expected = 4 * weight[LABELS].norm(dim=1) ** 2 * 0.8**2
    torch.testing.assert_close(found.infidelity, expected, rtol=0.05, atol=0)
    scaled = run(Infidelity(), flat(weight), batch, noise=0.1, scale=True)
    torch.testing.assert_close(scaled.factor, torch.full((3,), 1 / 3, dtype=torch.float64))
    assert float(scaled.infidelity.max()) < 1e-12


@pytest.mark.parametrize("scale", [False, True])
def test_infidelity_equals_captum_s(scale: bool) -> None:
    module, x = network().double(), images().double()
    maps = Saliency(module).attribute(x.requires_grad_(), target=LABELS, abs=False)
    x = x.detach()

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * normal(inputs.shape[1:]).to(inputs)
        return noise, inputs - noise

    expected = infidelity(
        module, perturb, x, maps, target=LABELS, n_perturb_samples=SAMPLES, normalize=scale
    )
    found = run(Infidelity(), eager(module), batch_of(x), noise=0.1, samples=SAMPLES, scale=scale)
    close(found.infidelity, expected, 1e-9)


def test_infidelity_of_shares_equals_captum_s() -> None:
    module, x = network().double(), images().double()
    maps = IntegratedGradients(module).attribute(x, target=LABELS, n_steps=30)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        removed = uniform(inputs.shape[1:]) < 0.3
        perturbed = torch.where(removed, 0.0, inputs)
        return inputs - perturbed, perturbed

    expected = infidelity(
        module,
        perturb,
        x,
        maps / x,
        target=LABELS,
        n_perturb_samples=SAMPLES,
    )
    found = run(
        Infidelity(),
        eager(module),
        batch_of(x, attributions=maps),
        samples=SAMPLES,
        perturbation="removal",
        removed=0.3,
        fill="zero",
        attribution="share",
    )
    close(found.infidelity, expected, 1e-9)


def test_max_sensitivity_equals_captum_s() -> None:
    module, x = network().double(), 0.1 + 0.8 * images().double()

    def explain(inputs: tuple[Tensor], target: Tensor) -> tuple[Tensor]:
        leaf = inputs[0].detach().clone().requires_grad_()
        return (Saliency(module).attribute(leaf, target=target, abs=False),)

    def perturb(inputs: Tensor) -> tuple[Tensor]:
        return (inputs + 0.05 * (2 * uniform(inputs.shape[1:]).to(x) - 1),)

    expected = sensitivity_max(
        explain, x, perturb, n_perturb_samples=SAMPLES, norm_ord=2, target=LABELS
    )
    options = {"radius": 0.05, "samples": SAMPLES, "method": SIGNED}
    found = run(MaxSensitivity(), eager(module), batch_of(x), **options)
    close(found.max_sensitivity, expected, 1e-9)
    assert bool((found.mean_sensitivity < found.max_sensitivity).all())
    whole = run(MaxSensitivity(), eager(module), batch_of(x), relative=False, **options)
    lengths = explain((x,), LABELS)[0].flatten(1).norm(dim=1)
    close(whole.max_sensitivity, expected * lengths, 1e-9)


def test_a_linear_model_s_gradient_does_not_move_and_a_zero_one_is_not_divided() -> None:
    weight, x = torch.randn(4, 9, dtype=torch.float64), torch.rand(3, 9, dtype=torch.float64)
    weight[LABELS[1]] = 0
    job = Recorder()
    found = run(MaxSensitivity(), flat(weight), batch_of(x), job)
    assert float(found.max_sensitivity.max()) == 0
    assert (["zero" in told for _, told in job.warnings], job.warnings[-1][0]) == (
        [True, True],
        [False, True, False],
    )


def test_inputs_stay_within_the_bounds() -> None:
    model = eager(network())
    seen: list[Tensor] = []
    model.module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    run(MaxSensitivity(), model, batch_of(images().round()), radius=0.5)
    assert min(float(x.min()) for x in seen) == 0
    assert max(float(x.max()) for x in seen) == 1


@pytest.mark.parametrize("plugin", [Infidelity, MaxSensitivity])
def test_passes_hold_no_more_rows_than_the_job_allows(plugin: type) -> None:
    model = eager(network().double())
    batch = batch_of(images().double())
    usual = run(plugin(), model, batch, samples=6)
    sizes: list[int] = []
    model.module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    job = Recorder(max_rows=4)
    found = run(plugin(), model, batch, job, samples=6)
    name = "infidelity" if plugin is Infidelity else "max_sensitivity"
    torch.testing.assert_close(getattr(found, name), getattr(usual, name))
    assert max(sizes) == 4
    assert job.totals == [1 + -(-3 * 6 // 4)]


@pytest.mark.parametrize("form", FORMS)
def test_files_give_the_eager_module_s_numbers(form: str, tmp_path: Path) -> None:
    module = network()
    model = loaded(module, form, tmp_path)
    expected = run(Infidelity(), eager(module), batch_of(images())).infidelity
    close(run(Infidelity(), model, batch_of(images())).infidelity, expected, 1e-3)
    expected = run(MaxSensitivity(), eager(module), batch_of(images())).max_sensitivity
    close(run(MaxSensitivity(), model, batch_of(images())).max_sensitivity, expected, 1e-3)
