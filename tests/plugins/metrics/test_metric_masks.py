"""The pointing game and localisation, by hand and against Quantus."""

import warnings
from typing import Any

import numpy
import pytest
import torch
from judging import LABELS, SHAPE, batch_of, eager, flat, images, network, run
from torch import Tensor

from interpret_plugins.metrics.localisation import Localisation
from interpret_plugins.metrics.pointing_game import PointingGame
from interpret_server.errors import InvalidRequest

MAP = torch.tensor([[[9.0, 1.0, 4.0], [3.0, -8.0, 2.0]]])


def judge(plugin: Any, maps: Tensor, mask: Tensor, **params: object) -> Any:
    shape = (1, 1, 2, 3)
    model = flat(torch.zeros(2, *shape[1:]))
    batch = batch_of(
        torch.zeros(shape, dtype=torch.float64),
        torch.tensor([0]),
        attributions=maps.double(),
        mask=mask,
    )
    return run(plugin, model, batch, **params)


def test_numbers_by_hand() -> None:
    mask = torch.tensor([[[1.0, 0, 0], [1.0, 1.0, 0]]])
    found = judge(Localisation(), MAP, mask)
    assert float(found.energy) == pytest.approx(12 / 19)
    assert float(found.rank_accuracy) == pytest.approx(2 / 3)  # 9, 4 and 3 are the largest three
    assert float(found.iou) == pytest.approx(2 / 4)
    assert float(found.chance) == 0.5
    found = judge(Localisation(), MAP, mask, sign="absolute")
    assert float(found.energy) == pytest.approx(20 / 27)
    assert float(found.rank_accuracy) == pytest.approx(2 / 3)  # 9, 8 and 4
    assert float(judge(PointingGame(), MAP, mask).hit) == 1
    assert float(judge(PointingGame(), MAP, 1 - mask).hit) == 0
    assert float(judge(PointingGame(), -MAP, mask).hit) == 1


def test_a_hit_may_be_near_the_object() -> None:
    mask = torch.tensor([[[0, 0, 0], [0, 1.0, 0]]])  # the peak is sqrt(2) away
    assert float(judge(PointingGame(), MAP, mask, tolerance=1.4).hit) == 0
    assert float(judge(PointingGame(), MAP, mask, tolerance=1.5).hit) == 1
    with pytest.raises(InvalidRequest, match=r"params\.tolerance"):
        run(PointingGame(), flat(torch.zeros(2, 4)), batch_of(torch.zeros(1, 4)), tolerance=1)


def test_no_evidence_never_hits() -> None:
    everywhere = torch.ones(1, 2, 3)
    assert float(judge(PointingGame(), torch.zeros(1, 2, 3), everywhere).hit) == 0
    found = judge(Localisation(), -torch.ones(1, 2, 3), everywhere)
    assert [float(found.energy), float(found.iou), float(found.rank_accuracy)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (torch.zeros(1, 2, 3), "the mask of row 0 is empty"),
        (torch.full((1, 2, 3), 0.5), "zeros and ones only"),
        (torch.ones(1, 3, 2), "do not fit an input"),
    ],
)
def test_masks_that_say_nothing_are_refused(mask: Tensor, told: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"tensors\.mask: .*{told}"):
        judge(Localisation(), MAP, mask)


def test_quantus_says_the_same() -> None:
    source = torch.Generator().manual_seed(3)
    maps = torch.randn(3, 1, 6, 6, generator=source)
    mask = (torch.rand(3, 1, 6, 6, generator=source) < 0.4).double()
    model = flat(torch.zeros(4, 1, 6, 6))
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import quantus

        for name in ("PointingGame", "RelevanceMassAccuracy", "RelevanceRankAccuracy"):
            metric = getattr(quantus, name)(abs=True, normalise=False, disable_warnings=True)
            found[name] = metric(
                model=model.module, x_batch=x.numpy(), y_batch=LABELS.numpy(),
                a_batch=maps.numpy(), s_batch=mask.numpy(), device="cpu", channel_first=True,
            )  # fmt: skip
    batch = batch_of(x, attributions=maps.double(), mask=mask[:, 0])
    result = run(Localisation(), model, batch, sign="absolute")
    numpy.testing.assert_allclose(result.energy, found["RelevanceMassAccuracy"], rtol=1e-6)
    numpy.testing.assert_allclose(result.rank_accuracy, found["RelevanceRankAccuracy"], rtol=1e-6)
    hits = run(PointingGame(), model, batch, sign="absolute").hit
    assert hits.bool().tolist() == [bool(numpy.all(item)) for item in found["PointingGame"]]


def test_channels_are_summed_and_a_method_is_run() -> None:
    model = eager(network())
    mask = torch.zeros(3, *SHAPE[1:])
    mask[:, 2:4] = 1
    gradient = model.gradient(images(), batch_of(images()).targets).inputs
    for sign, parts in (("absolute", gradient.abs().sum(1)), ("positive", gradient.sum(1).relu())):
        method = {"plugin": "saliency", "params": {"absolute": False}}
        found = run(Localisation(), model, batch_of(images(), mask=mask), method=method, sign=sign)
        expected = (parts * mask).sum((1, 2)) / parts.sum((1, 2))
        torch.testing.assert_close(found.energy, expected)
