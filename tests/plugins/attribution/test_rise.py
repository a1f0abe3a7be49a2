"""RISE equals a float64 re-implementation with the same masks, and its expectation."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from perturbing import SAVERS, SHAPE, Counted, Recorder, images, loaded, network, run
from torch import Tensor, nn
from torch.nn import functional

from interpret_plugins.attribution.rise import RISE, Masks
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.noise import generator
from interpret_server.plugin import Classifier
from interpret_server.testing import classifier

LABELS = torch.tensor([1, 3, 0])


def rise(model: Classifier, x: Tensor, *rest: Any, **params: Any) -> Any:
    return run(RISE(), model, x, *rest, **params)


def mask_of(seed: int, number: int, size: tuple[int, int], cells: int, keep: float) -> Tensor:
    """A mask as published: upsample a binary grid to one cell more than the image, and crop."""
    source = generator(seed, number)
    rows, columns = (min(cells, length) for length in size)
    grid = (torch.rand((rows, columns), generator=source) < keep).double()
    heights, widths = math.ceil(size[0] / rows), math.ceil(size[1] / columns)
    large = functional.interpolate(
        grid[None, None],
        ((rows + 1) * heights, (columns + 1) * widths),
        mode="bilinear",
        align_corners=False,
    )[0, 0]
    top = int(torch.randint(heights, (), generator=source))
    left = int(torch.randint(widths, (), generator=source))
    return large[top : top + size[0], left : left + size[1]]


def reference(net: nn.Module, x: Tensor, score: str, fill: float, count: int) -> Tensor:
    """RISE of float64 images one mask at a time, seeds being the rows' positions."""
    maps = []
    for row, image in enumerate(x):
        total = torch.zeros(image.shape[1:], dtype=torch.float64)
        for number in range(count):
            mask = mask_of(row, number, tuple(image.shape[1:]), 4, 0.3)
            logits = net((image * mask + fill * (1 - mask))[None])
            values = logits.softmax(1) if score == "probability" else logits
            total += values[0, LABELS[row]] * mask
        maps.append((total / count / 0.3).expand(3, -1, -1))
    return torch.stack(maps).detach()


@pytest.mark.parametrize("saver", SAVERS)
def test_files_of_every_form_equal_a_reimplementation(saver: str, tmp_path: Path) -> None:
    net, x = network(), images(3)
    model = loaded(net, saver, tmp_path)
    found = rise(model, x, Targets.classes(LABELS), masks=40, cells=4, keep=0.3, fill=0.25)
    expected = reference(network().double(), x.double(), "logit", 0.25, 40)
    torch.testing.assert_close(found.attributions, expected.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.logits, net(x))


def test_probabilities_are_measured_where_they_are_asked_for() -> None:
    net, x = network().double(), images(3).double()
    model = classifier(net, SHAPE, input_layout="CHW")
    params = {"masks": 30, "cells": 4, "keep": 0.3, "score": "probability"}
    found = rise(model, x, Targets.classes(LABELS), **params)
    expected = reference(net, x, "probability", 0.5, 30)
    torch.testing.assert_close(found.attributions, expected, rtol=0, atol=1e-6)


def covariance(length: int, cells: int) -> Tensor:
    """How the mask's values at two places of an axis vary together, per `p (1 - p)`."""
    size = math.ceil(length / cells)
    spread = functional.interpolate(
        torch.eye(cells, dtype=torch.float64)[None], (cells + 1) * size, mode="linear"
    )[0]
    cuts = [spread[:, shift : shift + length] for shift in range(size)]
    return torch.stack([cut.t() @ cut for cut in cuts]).mean(0)


def test_a_linear_model_gives_its_expectation_within_the_monte_carlo_error() -> None:
    layer = nn.Linear(63, 3).double()
    model = classifier(nn.Sequential(nn.Flatten(), layer), (9, 7))
    x = torch.rand(1, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    count, keep = 6000, 0.4
    found = rise(
        model, x, Targets.classes(torch.tensor([1])), masks=count, cells=3, keep=keep, fill="zero"
    ).attributions[0]
    shares = (layer.weight[1] * x.flatten()).detach()
    together = torch.kron(covariance(9, 3), covariance(7, 3)) * keep * (1 - keep) + keep**2
    expected = layer.bias[1].detach() + together @ shares / keep
    drawn = Masks([(9, 7)], 3, keep).draw([0] * count, range(count))[0].double().flatten(1)
    samples = (drawn @ shares + layer.bias[1].detach())[:, None] * drawn / keep
    error = samples.std(0) / math.sqrt(count)
    deviation = ((found.flatten() - expected) / error).abs()
    assert float(deviation.max()) < 4.5
    assert float(deviation.square().mean()) < 3


@pytest.mark.parametrize("shape", [(20,), (9, 10), (5, 6, 7)])
def test_masks_of_any_number_of_axes_keep_the_share_that_was_asked_for(
    shape: tuple[int, ...],
) -> None:
    (masks,) = Masks([shape], 7, 0.3).draw([5] * 4000, range(4000))
    assert masks.shape == (4000, *shape)
    assert float(masks.min()) >= 0
    assert float(masks.max()) <= 1 + 1e-6
    assert float((masks.mean(0) - 0.3).abs().max()) < 5 * math.sqrt(0.21 / 4000)


def test_a_mask_is_that_of_its_seed_and_number_alone() -> None:
    masks = Masks([(6, 5)], 3, 0.5)
    (several,) = masks.draw([1, 1, 2], [0, 7, 7])
    (alone,) = masks.draw([1], [7])
    assert torch.equal(several[1], alone[0])
    assert not torch.equal(several[1], several[2])
    assert not torch.equal(several[0], several[1])


def test_units_of_a_layer_are_measured_by_their_value() -> None:
    net, x = network(), images(2)
    model = classifier(net, SHAPE, input_layout="CHW")
    channel = Targets(TargetKind.CHANNEL, torch.tensor([[3], [1]]), "2")
    found = rise(model, x, channel, masks=20)
    head = nn.Sequential(net[:3], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    expected = rise(
        classifier(head, SHAPE, input_layout="CHW"),
        x,
        Targets.classes(torch.tensor([3, 1])),
        masks=20,
    )
    torch.testing.assert_close(found.attributions, expected.attributions)
    assert found.logits is None
    with pytest.raises(InvalidRequest, match=r"params.score: only a class has a probability"):
        rise(model, x, channel, score="probability")


def test_passes_are_full_and_every_one_is_a_step() -> None:
    model = classifier(network(), SHAPE, input_layout="CHW")
    x, targets = images(3), Targets.classes(LABELS)
    whole = rise(model, x, targets, masks=11).attributions
    seen, job = Counted(model), Recorder(max_rows=5)
    apart = rise(model, x, targets, job, masks=11).attributions
    assert job.totals == [8]
    assert job.done == 8
    assert seen.rows == [3, 5, 5, 5, 5, 5, 5, 3]
    torch.testing.assert_close(apart, whole, rtol=0, atol=1e-6)


def test_rows_that_no_mask_changes_are_warned_about() -> None:
    model = classifier(nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), (4,), bounds=(-1, 1))
    job = Recorder()
    x = torch.tensor([[0.5] * 4, [-0.5] * 4])
    rise(model, x, Targets.classes(torch.tensor([0, 1])), job, fill=-1.0, masks=9)
    assert [rows for rows, _ in job.warnings] == [[False, True]]
