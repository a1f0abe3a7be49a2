"""LIME equals the published procedure on the same coalitions, and its linear models are theirs."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import LimeBase
from perturbing import SAVERS, SHAPE, Counted, Recorder, images, loaded, network, run
from sklearn.linear_model import Ridge, lars_path
from sklearn.metrics import pairwise_distances, r2_score
from torch import Tensor, nn

from interpret_plugins.attribution.coalitions import coin_flips
from interpret_plugins.attribution.lime import LIME
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Classifier
from interpret_server.testing import classifier

LABELS = torch.tensor([1, 3, 0])


def lime(model: Classifier, x: Tensor, *rest: Any, **params: Any) -> Any:
    return run(LIME(), model, x, *rest, **params)


def groups(rows: int, shape: tuple[int, ...], count: int) -> Tensor:
    """Random features, others in every row."""
    source = torch.Generator().manual_seed(3)
    return torch.randint(0, count, (rows, *shape), generator=source)


def neighbourhood(
    net: nn.Module, x: Tensor, features: Tensor, label: int, fill: float, samples: int, seed: int
) -> tuple[Any, Any, Any]:
    """Coalitions, the whole one first, their scores and weights, as the authors' code has them."""
    count = int(features.max()) + 1
    z = coin_flips(count, seed, torch.arange(samples))
    z = torch.cat([torch.ones(1, count, dtype=torch.bool), z])
    hidden = torch.where(z[:, features.flatten()].reshape(-1, *x.shape), x.double(), fill)
    scores = net(hidden)[:, label].detach().numpy()
    data = z.double().numpy()
    distances = pairwise_distances(data, data[:1], metric="cosine").ravel()
    return data, scores, numpy.sqrt(numpy.exp(-(distances**2) / 0.25**2))


@pytest.mark.parametrize("saver", SAVERS)
def test_files_of_every_form_equal_a_weighted_ridge_regression(saver: str, tmp_path: Path) -> None:
    net, x, features = network(), images(3), groups(3, SHAPE, 9)
    model = loaded(net, saver, tmp_path)
    found = lime(
        model, x, Targets.classes(LABELS), None, {"features": features.float()},
        fill=0.25, samples=70,
    )  # fmt: skip
    assert torch.equal(found.features, features)
    torch.testing.assert_close(found.logits, net(x))
    for row, label in enumerate(LABELS.tolist()):
        z, scores, weights = neighbourhood(
            network().double(), x[row], features[row], label, 0.25, 70, row
        )
        peer = Ridge(alpha=1).fit(z, scores, sample_weight=weights)
        expected = torch.from_numpy(peer.coef_)[features[row]].float()
        torch.testing.assert_close(found.attributions[row], expected, rtol=0, atol=1e-5)
        assert float(found.intercept[row]) == pytest.approx(float(peer.intercept_), abs=1e-5)
        score = r2_score(scores, peer.predict(z), sample_weight=weights)
        assert float(found.score[row]) == pytest.approx(score, abs=1e-4)


def test_captum_gives_the_same_on_the_same_coalitions() -> None:
    net, x, features = network(), images(1), groups(1, SHAPE, 9)
    model = classifier(network(), SHAPE, input_layout="CHW")
    found = lime(
        model, x, Targets.classes(LABELS[:1]), None, {"features": features}, fill="zero", samples=50
    )
    z, _, weights = neighbourhood(network().double(), x[0], features[0], 1, 0, 50, 0)
    coalitions, similarities = iter(z), iter(weights)
    peer = LimeBase(
        net,
        SkLearnRidge(alpha=1.0),
        similarity_func=lambda *_, **__: next(similarities),
        perturb_func=lambda *_, **__: torch.from_numpy(next(coalitions))[None],
        perturb_interpretable_space=True,
        from_interp_rep_transform=lambda z, x, **_: z[:, features[0]].float() * x,
        to_interp_rep_transform=None,
    )
    expected = peer.attribute(x, target=1, n_samples=51)
    torch.testing.assert_close(found.attributions[0], expected[0][features[0]].float())


class Additive(nn.Module):
    """A base and a weight for each value that is not zero."""

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(2)
        weight = torch.randn(9, 3, generator=source, dtype=torch.float64)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x != 0).double() @ self.weight + 4


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_a_model_linear_in_its_coalitions_returns_its_coefficients(distance: str) -> None:
    net = Additive()
    model = classifier(net, (9,))
    x = 0.1 + torch.rand(3, 9, dtype=torch.float64)
    found = lime(
        model, x, Targets.classes(torch.tensor([0, 1, 2])),
        features="values", fill="zero", ridge=0, samples=200, distance=distance,
    )  # fmt: skip
    torch.testing.assert_close(found.attributions, net.weight.t())
    torch.testing.assert_close(found.intercept, torch.full((3,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(found.score, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("params", "width"), [({}, 0.75 * 3), ({"kernel_width": 1.3}, 1.3)], ids=["default", "given"]
)
def test_the_euclidean_kernel_weighs_by_the_features_that_are_hidden(
    params: dict[str, float], width: float
) -> None:
    net = network().double()
    model, x, features = classifier(net, SHAPE), images(1).double(), groups(1, SHAPE, 9)
    found = lime(
        model, x, Targets.classes(LABELS[:1]), None, {"features": features},
        fill="zero", samples=50, distance="euclidean", **params,
    )  # fmt: skip
    z, scores, _ = neighbourhood(net, x[0], features[0], 1, 0, 50, 0)
    distances = pairwise_distances(z, z[:1], metric="euclidean").ravel()
    weights = numpy.exp(-(distances**2) / (2 * width**2))
    peer = Ridge(alpha=1).fit(z, scores, sample_weight=weights)
    expected = torch.from_numpy(peer.coef_)[features[0]]
    torch.testing.assert_close(found.attributions[0], expected)


def chosen(selection: str, z: Any, scores: Any, weights: Any, most: int) -> list[int]:
    """As the authors' code chooses features."""
    if selection == "weights":
        sizes = abs(Ridge(alpha=0.01).fit(z, scores, sample_weight=weights).coef_)
        return sorted(numpy.argsort(sizes)[-most:].tolist())
    root = numpy.sqrt(weights)
    centred = (z - numpy.average(z, axis=0, weights=weights)) * root[:, None]
    labels = (scores - numpy.average(scores, weights=weights)) * root
    _, _, path = lars_path(centred, labels, method="lasso")
    for step in range(path.shape[1] - 1, 0, -1):
        kept = path.T[step].nonzero()[0]
        if len(kept) <= most:
            break
    return sorted(kept.tolist())


@pytest.mark.parametrize("selection", ["weights", "lasso"])
@pytest.mark.parametrize("most", [1, 4, 9])
def test_the_best_features_are_chosen_as_published(selection: str, most: int) -> None:
    net = network().double()
    model, x, features = classifier(net, SHAPE), images(3).double(), groups(3, SHAPE, 9)
    found = lime(
        model, x, Targets.classes(LABELS), None, {"features": features},
        samples=60, fill=0.25, num_features=most, selection=selection,
    )  # fmt: skip
    for row, label in enumerate(LABELS.tolist()):
        z, scores, weights = neighbourhood(net, x[row], features[row], label, 0.25, 60, row)
        used = list(range(9)) if most == 9 else chosen(selection, z, scores, weights, most)
        assert len(used) == most
        peer = Ridge(alpha=1).fit(z[:, used], scores, sample_weight=weights)
        expected = torch.zeros(9, dtype=torch.float64)
        expected[used] = torch.from_numpy(peer.coef_)
        torch.testing.assert_close(found.attributions[row], expected[features[row]])


def test_units_and_probabilities_are_measured() -> None:
    net, x = network().double(), images(2).double()
    model = classifier(net, SHAPE, input_layout="CHW")
    channel = Targets(TargetKind.CHANNEL, torch.tensor([[3], [1]]), "2")
    found = lime(model, x, channel, samples=30)
    head = nn.Sequential(net[:3], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    targets = Targets.classes(torch.tensor([3, 1]))
    expected = lime(classifier(head, SHAPE, input_layout="CHW"), x, targets, samples=30)
    torch.testing.assert_close(found.attributions, expected.attributions)
    assert found.logits is None
    soft = classifier(nn.Sequential(net, nn.Softmax(1)), SHAPE, input_layout="CHW")
    likely = lime(model, x, targets, samples=30, score="probability")
    torch.testing.assert_close(likely.attributions, lime(soft, x, targets, samples=30).attributions)
    with pytest.raises(InvalidRequest, match="only a class has a probability"):
        lime(model, x, channel, score="probability")


def test_passes_are_full_and_every_one_is_a_step() -> None:
    model = classifier(network(), SHAPE, input_layout="CHW")
    x, targets = images(3), Targets.classes(LABELS)
    whole = lime(model, x, targets, samples=11)
    seen, job = Counted(model), Recorder(max_rows=5)
    apart = lime(model, x, targets, job, samples=11)
    assert job.totals == [8]
    assert job.done == 8
    assert seen.rows == [3, 5, 5, 5, 5, 5, 5, 3]
    torch.testing.assert_close(apart.attributions, whole.attributions, rtol=0, atol=1e-5)


def test_poor_fits_and_rows_that_nothing_changes_are_warned_about() -> None:
    class Parity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            odd = torch.cos(torch.pi * (x > 0).double().sum(1, keepdim=True))
            return torch.cat([odd, x.double()[:, :1], 0 * odd], 1)

    model, job = classifier(Parity(), (9,)), Recorder()
    targets = Targets.classes(torch.tensor([0, 1, 2]))
    found = lime(model, torch.ones(3, 9), targets, job, features="values", fill="zero")
    assert [rows for rows, _ in job.warnings] == [[False, False, True], [True, False, True]]
    assert float(found.score[0]) < 0.1
    assert float(found.score[1]) > 0.99
    assert "explains less than 30%" in job.warnings[1][1]


def test_a_kernel_that_is_too_narrow_to_see_anything_is_warned_about() -> None:
    model, job = classifier(nn.Linear(6, 3), (6,)), Recorder()
    targets = Targets.classes(torch.tensor([2]))
    found = lime(
        model, torch.rand(1, 6), targets, job, features="values", samples=40, kernel_width=1e-3
    )
    assert torch.isfinite(found.attributions).all()
    assert "explains less than 30%" in job.warnings[0][1]


def test_a_row_without_features_has_no_attributions() -> None:
    model = classifier(nn.Linear(4, 3), (4,))
    features = torch.tensor([[-1.0] * 4, [0.0, 0.0, 1.0, -1.0]])
    targets = Targets.classes(torch.tensor([2, 0]))
    found = lime(model, torch.rand(2, 4), targets, None, {"features": features}, samples=40)
    assert not found.attributions[0].any()
    assert found.attributions[1].ne(0).tolist() == [True, True, True, False]
