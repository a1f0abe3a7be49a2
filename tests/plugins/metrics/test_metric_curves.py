"""Deletion and insertion, against closed forms on linear models and against Quantus."""

import warnings
from pathlib import Path

import numpy
import pytest
import torch
from judging import FORMS, LABELS, Recorder, batch_of, eager, flat, images, loaded, network, run

from interpret_plugins.metrics.deletion import Deletion
from interpret_plugins.metrics.insertion import Insertion
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Batch

WEIGHT = torch.tensor([[3.0, -1.0, 0.5, 2.0], [0.0, 1.0, -2.0, 4.0]], dtype=torch.float64)
X = torch.tensor([[1.0, 1.0, 2.0, 0.5], [2.0, -1.0, 1.0, 0.25]], dtype=torch.float64)


def test_curves_of_a_linear_model_are_sums_of_its_contributions() -> None:
    batch = batch_of(X, torch.tensor([0, 1]))
    options = {"method": "input_x_gradient", "score": "logit", "fill": "zero"}
    found = run(Deletion(), flat(WEIGHT, bias=0.5), batch, **options)
    # Contributions: 3, -1, 1, 1 and 0, -1, -2, 1; equal ones are deleted in the input's order.
    expected = torch.tensor([[4.5, 1.5, 0.5, -0.5, 0.5], [-1.5, -2.5, -2.5, -1.5, 0.5]])
    torch.testing.assert_close(found.curve, expected.double())
    areas = (expected[:, 1:] + expected[:, :-1]).double().sum(1) / 8
    torch.testing.assert_close(found.area, areas)
    found = run(Insertion(), flat(WEIGHT, bias=0.5), batch, **options)
    expected = torch.tensor([[0.5, 3.5, 4.5, 5.5, 4.5], [0.5, 1.5, 1.5, 0.5, -1.5]])
    torch.testing.assert_close(found.curve, expected.double())


def test_a_point_stands_for_equal_shares_of_the_positions() -> None:
    batch = batch_of(X, torch.tensor([0, 1]))
    options = {"method": "input_x_gradient", "score": "logit", "fill": "zero"}
    all_points = run(Deletion(), flat(WEIGHT), batch, **options).curve
    found = run(Deletion(), flat(WEIGHT), batch, steps=2, **options)
    torch.testing.assert_close(found.curve, all_points[:, ::2])
    areas = (found.curve[:, :-1] + found.curve[:, 1:]).sum(1) / 4
    torch.testing.assert_close(found.area, areas)


def test_all_channels_of_a_place_go_together_and_are_filled() -> None:
    weight = torch.tensor([[[1.0, 4.0], [2.0, -3.0]], [[0.0, 0.0], [0.0, 0.0]]])
    model = flat(weight)
    x = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)
    batch = batch_of(x, torch.tensor([0]))
    options = {"method": "input_x_gradient", "score": "logit"}
    # Places: 1 + 2 and 4 - 3.
    found = run(Deletion(), model, batch, fill=0.5, **options)
    torch.testing.assert_close(found.curve, torch.tensor([[4.0, 2.5, 2.0]]).double())
    found = run(Insertion(), model, batch, fill="lower", **options)
    torch.testing.assert_close(found.curve, torch.tensor([[-16.0, -1.0, 4.0]]).double())


def test_attributions_of_the_request_are_judged_with_or_without_channels() -> None:
    model, batch = eager(network()), batch_of(images())
    shared = torch.rand(3, 6, 7)
    whole = torch.stack([shared, torch.zeros(3, 6, 7)], 1)
    first = run(Deletion(), model, batch_of(images(), attributions=shared))
    second = run(Deletion(), model, batch_of(images(), attributions=whole))
    torch.testing.assert_close(first.curve, second.curve)
    assert torch.equal(first.attributions, shared)
    assert not torch.allclose(first.curve, run(Deletion(), model, batch).curve)
    with pytest.raises(InvalidRequest, match=r"tensors\.attributions: attributions of shape"):
        run(Deletion(), model, batch_of(images(), attributions=torch.rand(3, 7, 6)))


def test_deletion_equals_pixel_flipping_of_quantus() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import quantus

        weight = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(2)).double()
        model, x = flat(weight), torch.rand(3, 1, 6, 6, dtype=torch.float64)
        maps = torch.rand(3, 1, 6, 6)
        metric = quantus.PixelFlipping(
            features_in_step=4,
            perturb_baseline="black",
            abs=False,
            normalise=False,
            disable_warnings=True,
        )
        module = flat(weight).module.float()
        expected = metric(
            model=module, x_batch=x.numpy(), y_batch=LABELS.numpy(), a_batch=maps.numpy(),
            softmax=True, device="cpu", channel_first=True,
        )  # fmt: skip
    batch = batch_of(x, attributions=maps)
    found = run(Deletion(), model, batch, steps=9, fill=float(x.min()))
    black = run(Deletion(), model, batch, steps=9, fill="lower")
    assert not torch.allclose(found.curve, black.curve)
    rows = [
        run(Deletion(), model, batch_of(x[i : i + 1], LABELS[i:], attributions=maps[i : i + 1]),
            steps=9, fill=float(x[i].min())).curve[0, 1:]
        for i in range(3)
    ]  # fmt: skip
    numpy.testing.assert_allclose(torch.stack(rows).numpy(), numpy.array(expected), rtol=1e-4)


def test_insertion_may_start_from_a_blur() -> None:
    model, batch = eager(network()), batch_of(images())
    found = run(Insertion(), model, batch, fill="blur", sigma=1e4)
    flat_images = images().mean((2, 3), keepdim=True).expand_as(images())
    expected = network()(flat_images).softmax(1).gather(1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(found.curve[:, 0], expected.detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidRequest, match=r"params\.fill: .* has no spatial axes"):
        run(Insertion(), flat(WEIGHT), batch_of(X), fill="blur")


def test_a_neuron_is_measured_by_its_value() -> None:
    module = network()
    targets = Targets(TargetKind.NEURON, torch.tensor([[0, 1, 2], [3, 0, 1]]), layer="2")
    found = run(Deletion(), eager(module), Batch(images(2), targets, (1, 2)))
    values = module[:3](images(2))
    expected = torch.stack([values[0, 0, 1, 2], values[1, 3, 0, 1]]).detach()
    torch.testing.assert_close(found.curve[:, 0], expected)


def test_a_constant_attribution_is_warned_about() -> None:
    job = Recorder()
    maps = torch.rand(2, 2, 6, 7)
    maps[1] = 0.5
    run(Deletion(), eager(network()), batch_of(images(2), attributions=maps), job)
    assert [rows for rows, _ in job.warnings] == [[False, True]]
    assert "the same everywhere" in job.warnings[0][1]


@pytest.mark.parametrize("plugin", [Deletion, Insertion])
def test_passes_hold_no_more_rows_than_the_job_allows(plugin: type) -> None:
    model, batch = eager(network()), batch_of(images())
    usual = run(plugin(), model, batch)
    sizes: list[int] = []
    model.module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    job = Recorder(max_rows=5)
    found = run(plugin(), model, batch, job)
    torch.testing.assert_close(found.curve, usual.curve)
    assert max(sizes[1:]) == 5
    assert job.totals == [1 + -(-3 * 43 // 5)]


@pytest.mark.parametrize("form", FORMS)
def test_files_give_the_eager_module_s_curves(form: str, tmp_path: Path) -> None:
    module = network()
    expected = run(Deletion(), eager(module), batch_of(images()))
    found = run(Deletion(), loaded(module, form, tmp_path), batch_of(images()))
    torch.testing.assert_close(found.curve, expected.curve, rtol=1e-4, atol=1e-5)
