"""Occlusion equals Captum's on every form, closed forms on linear models, and its contract."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import Occlusion as Peer
from perturbing import SAVERS, SHAPE, Counted, Recorder, images, loaded, network, run
from torch import Tensor, nn

from interpret_plugins.attribution.occlusion import Occlusion
from interpret_server.errors import Cancelled, InvalidRequest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Capability, Classifier, Job
from interpret_server.testing import classifier

LABELS = torch.tensor([1, 3, 0])


def occlude(model: Classifier, x: Tensor, *rest: Any, **params: object) -> Any:
    return run(Occlusion(), model, x, *rest, **params)


@pytest.mark.parametrize("saver", SAVERS)
def test_files_of_every_form_equal_captum_on_the_eager_module(saver: str, tmp_path: Path) -> None:
    net, x = network(), images(3)
    model = loaded(net, saver, tmp_path)
    assert (Capability.GRADIENT in model.capabilities) == (saver != "runtime")
    found = occlude(model, x, Targets.classes(LABELS), window=[4, 3], stride=[2, 3], fill=0.25)
    expected = Peer(net).attribute(
        x,
        target=LABELS,
        sliding_window_shapes=(3, 4, 3),
        strides=(3, 2, 3),
        baselines=0.25,
        perturbations_per_eval=7,
    )
    torch.testing.assert_close(found.attributions, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(found.logits, net(x))


SETTINGS = [
    ((12,), "other", 5, 2, (5,), (2,)),
    ((2, 16), "CL", [3], [2], (2, 3), (2, 2)),
    ((2, 16), "CL", [1, 5], [1, 4], (1, 5), (1, 4)),
    ((3, 7, 6), "CHW", 3, 2, (3, 3, 3), (3, 2, 2)),
    ((6, 7, 3), "HWC", [3, 2], 2, (3, 2, 3), (2, 2, 3)),
    ((2, 4, 5, 3), "other", 2, 1, (2, 2, 2, 2), (1, 1, 1, 1)),
    ((2, 4, 5, 3), "other", [2, 4, 5, 1], [1, 9, 9, 1], (2, 4, 5, 1), (1, 9, 9, 1)),
]


@pytest.mark.parametrize(("shape", "layout", "window", "stride", "sizes", "steps"), SETTINGS)
def test_any_number_of_axes_equals_captum(
    shape: tuple[int, ...],
    layout: str,
    window: object,
    stride: object,
    sizes: tuple[int, ...],
    steps: tuple[int, ...],
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 6), nn.Tanh(), nn.Linear(6, 4))
    net = net.double().eval()
    model = classifier(net, shape, input_layout=layout)
    x = torch.rand(3, *shape, dtype=torch.float64)
    found = occlude(model, x, Targets.classes(LABELS), window=window, stride=stride, fill="zero")
    expected = Peer(net).attribute(
        x, target=LABELS, sliding_window_shapes=sizes, strides=steps, perturbations_per_eval=5
    )
    torch.testing.assert_close(found.attributions, expected.double(), rtol=0, atol=1e-6)


def test_single_values_of_a_linear_model_give_weight_times_distance_from_the_fill() -> None:
    layer = nn.Linear(6, 4).double()
    model = classifier(layer, (6,), bounds=(-1, 3))
    x = torch.rand(3, 6, dtype=torch.float64)
    for fill, value in (("mean", 1.0), ("zero", 0.0), ("lower", -1.0), ("upper", 3.0), (0.5, 0.5)):
        found = occlude(model, x, Targets.classes(LABELS), window=1, fill=fill).attributions
        torch.testing.assert_close(found, layer.weight[LABELS] * (x - value))


def test_windows_without_overlap_share_out_the_whole_difference_of_a_linear_model() -> None:
    layer = nn.Linear(54, 4).double()
    model = classifier(nn.Sequential(nn.Flatten(), layer), (6, 9))
    x = torch.rand(3, 6, 9, dtype=torch.float64)
    found = occlude(model, x, Targets.classes(LABELS), window=3, stride=3, fill="lower")
    before, after = layer(x.flatten(1)), layer(torch.zeros(3, 54, dtype=torch.float64))
    whole = (before - after).gather(1, LABELS[:, None]).squeeze(1)
    torch.testing.assert_close(found.attributions.sum((1, 2)) / 9, whole)


def test_probabilities_are_measured_where_they_are_asked_for() -> None:
    net, x = network().double(), images(3).double()
    model = classifier(net, SHAPE, input_layout="CHW")
    found = occlude(model, x, Targets.classes(LABELS), window=4, stride=4, score="probability")
    expected = Peer(lambda rows: net(rows).softmax(1)).attribute(
        x, target=LABELS, sliding_window_shapes=(3, 4, 4), strides=(3, 4, 4), baselines=0.5
    )
    torch.testing.assert_close(found.attributions, expected.double(), rtol=0, atol=1e-6)


def test_units_of_a_layer_are_measured_by_their_value_and_have_no_probability() -> None:
    net, x = network().double(), images(2).double()
    model = classifier(net, SHAPE, input_layout="CHW")
    channel = Targets(TargetKind.CHANNEL, torch.tensor([[3], [1]]), "2")
    found = occlude(model, x, channel, window=4, stride=4)
    expected = Peer(lambda rows: net[:3](rows).mean((2, 3))).attribute(
        x,
        target=torch.tensor([3, 1]),
        sliding_window_shapes=(3, 4, 4),
        strides=(3, 4, 4),
        baselines=0.5,
    )
    torch.testing.assert_close(found.attributions, expected.double(), rtol=0, atol=1e-6)
    assert found.logits is None
    with pytest.raises(InvalidRequest, match=r"params.score: only a class has a probability"):
        occlude(model, x, channel, score="probability")


@pytest.mark.parametrize("rows", [1, 3])
def test_passes_are_full_and_every_one_is_a_step(rows: int) -> None:
    model = classifier(network(), SHAPE, input_layout="CHW")
    x, targets = images(rows), Targets.classes(LABELS[:rows])
    whole = occlude(model, x, targets, window=3, stride=3).attributions
    seen, job = Counted(model), Recorder(max_rows=5)
    apart = occlude(model, x, targets, job, window=3, stride=3).attributions
    variants = rows * 3 * 4
    assert job.totals == [1 + -(-variants // 5)]
    assert job.done == job.totals[0]
    assert seen.rows == [rows] + [5] * (variants // 5) + [variants % 5] * bool(variants % 5)
    torch.testing.assert_close(apart, whole, rtol=0, atol=1e-6)


class Stopped(Job):
    def track(self, total: int) -> Any:
        yield 0
        yield 1
        raise Cancelled("nobody waits")


def test_no_pass_follows_a_cancellation() -> None:
    model = classifier(network(), SHAPE, input_layout="CHW")
    seen = Counted(model)
    with pytest.raises(Cancelled):
        occlude(model, images(3), Targets.classes(LABELS), Stopped(), window=1)
    assert len(seen.rows) == 2


def test_rows_that_no_window_changes_are_warned_about() -> None:
    model = classifier(nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), (4,), bounds=(-1, 1))
    job = Recorder()
    x = torch.tensor([[0.5] * 4, [-0.5] * 4])
    result = occlude(model, x, Targets.classes(torch.tensor([0, 1])), job, fill=-1.0)
    assert not result.attributions[1].any()
    assert [rows for rows, _ in job.warnings] == [[False, True]]


REFUSALS = [
    ({"window": 11}, "params.window", "larger than an input"),
    ({"window": [2, 2, 2, 2]}, "params.window", "4 sizes, where an input of .* takes 2 or 3"),
    ({"window": 2, "stride": 3}, "params.stride", "leaves gaps"),
    ({"window": 2, "stride": [1]}, "params.stride", "1 sizes"),
    ({"fill": "upper"}, "params.fill", "bounds"),
]


@pytest.mark.parametrize(("params", "field", "why"), REFUSALS)
def test_what_makes_no_sense_is_refused_by_name(
    params: dict[str, object], field: str, why: str
) -> None:
    model = classifier(network(), SHAPE, input_layout="CHW", bounds=None)
    with pytest.raises(InvalidRequest, match=why) as caught:
        occlude(model, images(3), Targets.classes(LABELS), **params)
    assert caught.value.violations[0].field == field


def test_too_many_windows_are_refused_before_they_are_made() -> None:
    model = classifier(nn.Flatten(), (2000, 2000))
    with pytest.raises(InvalidRequest, match="4000000 windows"):
        Occlusion().check(model, Occlusion.params_type(window=1))
