"""Feature ablation equals Captum's on every form, closed forms on linear models, its refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import FeatureAblation as Peer
from perturbing import SAVERS, SHAPE, Counted, Recorder, images, loaded, network, run
from torch import Tensor, nn

from interpret_plugins.attribution.feature_ablation import FeatureAblation
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Classifier
from interpret_server.testing import classifier

LABELS = torch.tensor([1, 3, 0])


def ablate(model: Classifier, x: Tensor, *rest: Any, **params: Any) -> Any:
    return run(FeatureAblation(), model, x, *rest, **params)


def groups(rows: int, shape: tuple[int, ...], count: int) -> Tensor:
    """Random features, others in every row."""
    source = torch.Generator().manual_seed(3)
    return torch.randint(0, count, (rows, *shape), generator=source)


@pytest.mark.parametrize("saver", SAVERS)
def test_files_of_every_form_equal_captum_on_the_eager_module(saver: str, tmp_path: Path) -> None:
    net, x, features = network(), images(3), groups(3, SHAPE, 6)
    model = loaded(net, saver, tmp_path)
    found = ablate(
        model, x, Targets.classes(LABELS), tensors={"features": features.float()}, fill=0.25
    )
    for row, label in enumerate(LABELS.tolist()):
        part = slice(row, row + 1)
        expected = Peer(net).attribute(
            x[part], target=label, feature_mask=features[part], baselines=0.25
        )
        torch.testing.assert_close(found.attributions[part], expected, rtol=0, atol=2e-6)
    assert torch.equal(found.features, features)
    torch.testing.assert_close(found.logits, net(x))


def test_units_of_a_layer_equal_captum() -> None:
    net, x = network(), images(1)
    model = classifier(net, SHAPE, input_layout="CHW")
    neuron = Targets(TargetKind.NEURON, torch.tensor([[3, 1, 2]]), "2")
    features = groups(1, SHAPE, 5)
    found = ablate(model, x, neuron, tensors={"features": features.float()}, fill="zero")
    expected = Peer(net[:3]).attribute(x, target=(3, 1, 2), feature_mask=features)
    torch.testing.assert_close(found.attributions, expected, rtol=0, atol=2e-6)
    assert found.logits is None


@pytest.mark.parametrize(
    ("shape", "layout", "cell", "expected"),
    [
        ((7,), "other", 3, [0, 0, 0, 1, 1, 1, 2]),
        ((2, 3), "CL", 2, [[0, 0, 1], [0, 0, 1]]),
        ((2, 3), "other", 1, [[0, 1, 2], [3, 4, 5]]),
        ((2, 3), "CL", [1, 2], [[0, 0, 1], [2, 2, 3]]),
        ((3, 2, 1), "HWC", [2, 1], [[[0], [1]], [[0], [1]], [[2], [3]]]),
    ],
)
def test_cells_of_the_grid_are_numbered_along_the_last_axis(
    shape: tuple[int, ...], layout: str, cell: object, expected: list[Any]
) -> None:
    size = int(torch.tensor(shape).prod())
    model = classifier(nn.Sequential(nn.Flatten(), nn.Linear(size, 2)), shape, input_layout=layout)
    found = ablate(model, torch.rand(1, *shape), Targets.classes(torch.tensor([1])), cell=cell)
    assert found.features[0].tolist() == expected


def test_falls_of_a_linear_model_are_those_of_the_features_and_add_up() -> None:
    layer = nn.Linear(12, 4).double()
    model = classifier(layer, (12,), bounds=(-1, 3))
    x = torch.rand(3, 12, dtype=torch.float64)
    found = ablate(model, x, Targets.classes(LABELS), cell=5).attributions
    parts = (layer.weight[LABELS] * (x - 1)).split(5, 1)
    for part, values in zip(parts, found.split(5, 1), strict=True):
        torch.testing.assert_close(values, part.sum(1, keepdim=True).expand_as(values))


def test_rows_may_have_different_numbers_of_features_and_values_that_stay() -> None:
    layer = nn.Linear(4, 3).double()
    model = classifier(layer, (4,))
    x = torch.rand(2, 4, dtype=torch.float64)
    features = torch.tensor([[7, 7, -1, 7], [900, -3, 20, 11]])
    job, seen = Recorder(max_rows=2), Counted(model)
    found = ablate(
        model, x, Targets.classes(torch.tensor([2, 0])), job, {"features": features}, fill="zero"
    )
    assert found.features.tolist() == [[0, 0, -1, 0], [2, -1, 1, 0]]
    parts = layer.weight[[2, 0]] * x
    first = parts[0, [0, 1, 3]].sum()
    expected = [torch.stack([first, first, first * 0, first]), parts[1] * (features[1] >= 0)]
    torch.testing.assert_close(found.attributions, torch.stack(expected))
    assert job.totals == [3]
    assert seen.rows == [2, 2, 2]


def test_features_without_channels_hold_for_all_of_them() -> None:
    net, x = network(), images(2)
    model = classifier(net, SHAPE, input_layout="CHW")
    targets, flat = Targets.classes(LABELS[:2]), groups(2, SHAPE[1:], 4).float()
    whole = flat.unsqueeze(1).expand(2, *SHAPE)
    results = [
        ablate(model, x, targets, tensors={"features": item}).attributions
        for item in (flat, flat.unsqueeze(1), whole)
    ]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[2])


def test_a_request_in_which_nothing_may_be_hidden_is_warned_about() -> None:
    model, job = classifier(nn.Linear(4, 3), (4,)), Recorder()
    features = torch.tensor([[-1.0] * 4, [0.0] * 4])
    targets = Targets.classes(torch.tensor([2, 0]))
    for rows in (2, 1):
        part = {"features": features[:rows]}
        found = ablate(model, torch.rand(rows, 4), targets.take(slice(rows)), job, part)
        assert not found.attributions[0].any()
    assert [rows for rows, _ in job.warnings] == [[True, False], [True]]


@pytest.mark.parametrize(
    ("features", "why"),
    [
        (torch.tensor([[0.0, 0.5, 1.0, 2.0]]), "must be whole"),
        (torch.tensor([[0.0, 1e30, 1.0, 2.0]]), "at most"),
        (torch.zeros(1, 3), r"rows of shape \[3\] do not fit an input of \[4\]"),
        (torch.zeros(1, 2, 4), r"rows of shape \[2, 4\]"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: Tensor, why: str) -> None:
    model = classifier(nn.Linear(4, 3), (4,))
    targets = Targets.classes(torch.tensor([0]))
    with pytest.raises(InvalidRequest, match=why) as caught:
        ablate(model, torch.rand(1, 4), targets, tensors={"features": features})
    assert caught.value.violations[0].field == "tensors.features"


def test_more_features_than_can_be_tried_are_refused() -> None:
    model = classifier(nn.Flatten(), (400, 300))
    with pytest.raises(InvalidRequest, match="120000 cells"):
        FeatureAblation().check(model, FeatureAblation.params_type(cell=1))
    features = torch.arange(120_000.0).reshape(1, 400, 300)
    with pytest.raises(InvalidRequest, match="more than 100000 features"):
        ablate(
            model,
            torch.rand(1, 400, 300),
            Targets.classes(torch.tensor([0])),
            tensors={"features": features},
        )
