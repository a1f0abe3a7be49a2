"""ROAD, and its imputation, against Quantus."""

import warnings
from pathlib import Path

import pytest
import torch
from judging import (
    FORMS,
    LABELS,
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
from torch import Tensor, nn

from interpret_plugins.metrics.imputation import impute
from interpret_plugins.metrics.road import ROAD
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Batch
from interpret_server.testing import classifier


def of_quantus(image: Tensor, removed: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from quantus.functions.perturb_func import noisy_linear_imputation

        indices = removed.flatten().nonzero()[:, 0].numpy()
        return torch.from_numpy(noisy_linear_imputation(image.numpy(), indices, noise=0.0))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_imputation_equals_quantus(share: float, dtype: torch.dtype) -> None:
    x = torch.rand(3, 2, 9, 13, dtype=dtype)
    removed = torch.rand(3, 9, 13) < share
    removed[:, 4, 5] = False
    found = impute(x, removed)
    for row in range(3):
        expected = of_quantus(x[row].double(), removed[row])
        tolerance = 1e-9 if dtype is torch.float64 else 1e-4
        torch.testing.assert_close(found[row].double(), expected, rtol=0, atol=tolerance)


def test_an_image_is_imputed_alike_in_any_company_and_kept_where_nothing_is_removed() -> None:
    x = torch.rand(3, 1, 16, 16)
    removed = torch.zeros(3, 16, 16, dtype=torch.bool)
    removed[0, 3, 3], removed[1, 1:15, 1:15] = True, True
    together = impute(x, removed)
    assert torch.equal(together[2], x[2])
    for row in range(2):
        alone = impute(x[row : row + 1], removed[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-6)


def test_a_plane_is_imputed_exactly() -> None:
    across, down = torch.meshgrid(2 * [torch.arange(9.0).double()], indexing="xy")
    plane = (0.1 * across + 0.05 * down)[None, None]
    removed = torch.zeros(1, 9, 9, dtype=torch.bool)
    removed[:, 2:7, 2:7] = True
    torch.testing.assert_close(impute(plane, removed), plane, rtol=0, atol=1e-9)


def test_curves_equal_quantus_imputation_and_the_eager_module() -> None:
    module, x = network().double(), images().double()
    maps = torch.rand(3, 6, 7, dtype=torch.float64)
    options = {"percentages": [20, 50], "noise": 0.0}
    found = run(ROAD(), eager(module), batch_of(x, attributions=maps), **options)
    for row in range(3):
        order = maps[row].flatten().argsort(descending=True)
        for column, count in enumerate((8, 21)):
            for curve, kept, first in (
                (found.morf_curve, found.morf_kept, order[:count]),
                (found.lerf_curve, found.lerf_kept, order[-count:]),
            ):
                removed = torch.zeros(42, dtype=torch.bool)
                removed[first] = True
                logits = module(of_quantus(x[row], removed.reshape(6, 7))[None])[0].detach()
                expected = logits.softmax(0)[LABELS[row]]
                torch.testing.assert_close(curve[row, column], expected, rtol=0, atol=1e-9)
                assert bool(kept[row, column]) == (int(logits.argmax()) == int(LABELS[row]))
    torch.testing.assert_close(found.gap, (found.lerf_curve - found.morf_curve).mean(1))


def test_the_gap_of_the_opposite_attribution_is_the_opposite() -> None:
    module, maps = network().double(), torch.rand(3, 6, 7, dtype=torch.float64)
    model, x = eager(module), images().double()
    found = run(ROAD(), model, batch_of(x, attributions=maps), noise=0.0)
    opposite = run(ROAD(), model, batch_of(x, attributions=-maps), noise=0.0)
    torch.testing.assert_close(found.gap, -opposite.gap, rtol=1e-9, atol=1e-12)


def test_noise_is_that_of_the_row_s_seed() -> None:
    model, x = eager(network().double()), images().double()
    one, other = (run(ROAD(), model, batch_of(x), noise=noise) for noise in (0.0, 0.2))
    assert not torch.allclose(one.morf_curve, other.morf_curve)
    alone = Batch(x[1:2], Targets.classes(LABELS[1:2]), (1 << 40,))
    again = run(ROAD(), model, alone, noise=0.2)
    torch.testing.assert_close(again.morf_curve, other.morf_curve[1:2])


def test_signals_and_channels_at_the_end() -> None:
    weight = torch.randn(4, 2, 12, dtype=torch.float64)
    found = run(ROAD(), flat(weight), batch_of(torch.rand(3, 2, 12, dtype=torch.float64)))
    assert found.morf_curve.shape == (3, 9)
    module = network().double()

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.permute(0, 3, 1, 2))

    model = classifier(Last(), (6, 7, 2), input_layout="HWC")
    maps = torch.rand(3, 6, 7, dtype=torch.float64)
    x = images().double()
    last = run(ROAD(), model, batch_of(x.permute(0, 2, 3, 1), attributions=maps), noise=0.0)
    first = run(ROAD(), eager(module), batch_of(x, attributions=maps), noise=0.0)
    torch.testing.assert_close(last.morf_curve, first.morf_curve)


def test_units_have_no_predicted_class_and_flat_inputs_no_places_around() -> None:
    targets = Targets(TargetKind.CHANNEL, torch.tensor([[0], [2]]), layer="2")
    found = run(ROAD(), eager(network()), Batch(images(2), targets, (1, 2)))
    assert found.morf_kept is None
    with pytest.raises(InvalidRequest, match="an image or a signal"):
        run(ROAD(), flat(torch.zeros(2, 4)), batch_of(torch.zeros(1, 4)))


def test_passes_hold_no_more_rows_than_the_job_allows() -> None:
    model = eager(network().double())
    batch = batch_of(images().double())
    usual = run(ROAD(), model, batch)
    sizes: list[int] = []
    model.module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    job = Recorder(max_rows=4)
    found = run(ROAD(), model, batch, job)
    torch.testing.assert_close(found.lerf_curve, usual.lerf_curve)
    assert max(sizes) == 4
    assert job.totals == [1 + -(-3 * 18 // 4)]


@pytest.mark.parametrize("form", FORMS)
def test_files_give_the_eager_module_s_curves(form: str, tmp_path: Path) -> None:
    module = network()
    expected = run(ROAD(), eager(module), batch_of(images()))
    found = run(ROAD(), loaded(module, form, tmp_path), batch_of(images()))
    close(found.morf_curve, expected.morf_curve, 1e-3)
