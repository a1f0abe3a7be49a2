"""Codes as points: scikit-learn's PCA, affinities, t-SNE and trustworthiness; files."""

from pathlib import Path

import numpy
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, _t_sne
from sklearn.manifold import trustworthiness as sklearn_trustworthiness
from torch import Tensor, nn

from interpret_plugins.internals.code_embedding import CodeEmbedding
from interpret_plugins.internals.embedding import (
    PrincipalComponents,
    StochasticNeighbours,
    conditional,
    trustworthiness,
)
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.testing import classifier
from tests.plugins.internals.networks import (
    FORMS,
    Network,
    Recorder,
    images,
    loaded,
    run,
)

PLUGIN = CodeEmbedding()


def clusters(rows: int, values: int = 10) -> tuple[Tensor, Tensor]:
    """Points of four clusters, and which."""
    source = torch.Generator().manual_seed(3)
    centres = 4 * torch.randn(4, values, generator=source, dtype=torch.float64)
    labels = torch.arange(rows) % 4
    noise = torch.randn(rows, values, generator=source, dtype=torch.float64)
    return centres[labels] + noise, labels


@pytest.mark.parametrize(("rows", "values"), [(40, 6), (6, 40), (3, 2), (1, 5)])
def test_principal_components_are_scikit_learns(rows: int, values: int) -> None:
    points, _ = clusters(rows, values)
    known = min(4, rows, values)
    found = PrincipalComponents(points, 4)
    if rows > 1:
        peer = PCA(known).fit(points.numpy())
        directions = torch.as_tensor(peer.components_)
        signs = directions.gather(1, directions.abs().argmax(1)[:, None]).sign().T
        expected = torch.as_tensor(peer.transform(points.numpy())) * signs
        torch.testing.assert_close(found.scores[:, :known], expected, rtol=1e-6, atol=1e-6)
        shares = torch.as_tensor(peer.explained_variance_ratio_)
        torch.testing.assert_close(found.share[:known], shares, rtol=1e-8, atol=1e-12)
        variance = torch.as_tensor(peer.explained_variance_)
        torch.testing.assert_close(found.variance[:known], variance, rtol=1e-8, atol=1e-10)
    assert found.scores.shape == (rows, 4)
    assert not found.scores[:, known:].any()


def test_affinities_are_scikit_learns() -> None:
    points, _ = clusters(50)
    likely = torch.cat([conditional(points, range(20), 12), conditional(points, range(20, 50), 12)])
    entropy = -(likely * likely.clamp(min=1e-300).log()).sum(1)
    torch.testing.assert_close(entropy.exp(), torch.full((50,), 12.0).double())
    squares = torch.cdist(points, points).square().numpy().astype(numpy.float32)
    from scipy.spatial.distance import squareform

    peer = torch.as_tensor(squareform(_t_sne._joint_probabilities(squares, 12, 0)))
    joint = (likely + likely.T) / (likely + likely.T).sum()
    torch.testing.assert_close(joint, peer, rtol=1e-3, atol=1e-8)


def test_the_gradient_is_that_of_the_divergence() -> None:
    points, _ = clusters(30)
    likely = conditional(points, range(30), 5)
    found = StochasticNeighbours(likely, points[:, :2], 10)
    place = (found.positions * 1e4).requires_grad_()
    pairs = ~torch.eye(30, dtype=torch.bool)
    joint = ((likely + likely.T) / 60)[pairs]
    closeness = 1 / (1 + (place[:, None] - place).square().sum(2))[pairs]
    divergence = (joint * (joint / (closeness / closeness.sum())).log()).sum()
    (expected,) = torch.autograd.grad(divergence, place)
    found.positions = place.detach()
    torch.testing.assert_close(found.gradient(), expected)
    torch.testing.assert_close(found.divergence(), divergence.detach())


def test_points_that_are_alike_have_finite_affinities_and_positions() -> None:
    points = torch.zeros(8, 3, dtype=torch.float64)
    likely = conditional(points, range(8), 2)
    torch.testing.assert_close(likely.sum(1), torch.ones(8, dtype=torch.float64))
    found = StochasticNeighbours(likely, points[:, :2], 5)
    for number in range(5):
        found.step(number)
    assert found.positions.isfinite().all()


def test_tsne_reaches_the_divergence_and_the_trustworthiness_of_scikit_learns() -> None:
    points, labels = clusters(120)
    model = classifier(nn.Sequential(nn.Identity(), nn.Linear(10, 4)).double(), (10,), bounds=None)
    job = Recorder(50)
    found = run(PLUGIN, model, points, Targets.none(120), job, layer="0", method="tsne", steps=500,
                perplexity=20)  # fmt: skip
    assert job.steps == [3 + 1 + 1 + 1 + 500 + 1]
    peer = TSNE(perplexity=20, init="pca", method="exact", max_iter=500, learning_rate="auto")
    positions = peer.fit_transform(points.numpy())
    assert float(found.divergence) < 1.05 * peer.kl_divergence_
    reached = sklearn_trustworthiness(points.numpy(), found.positions.numpy(), n_neighbors=5)
    theirs = sklearn_trustworthiness(points.numpy(), positions, n_neighbors=5)
    assert float(found.trustworthiness.mean()) == pytest.approx(reached, abs=1e-9)
    assert reached > theirs - 0.02
    apart = torch.cdist(found.positions, found.positions).fill_diagonal_(torch.inf)
    nearest = apart.argsort(1)[:, :10]
    assert (labels[nearest] == labels[:, None]).double().mean() > 0.98


def test_trustworthiness_is_scikit_learns_for_any_positions() -> None:
    points, _ = clusters(31)
    positions = torch.randn(31, 2, generator=torch.Generator().manual_seed(1)).double()
    for k in (1, 5, 15):
        found = [trustworthiness(points, positions, part, k) for part in (range(9), range(9, 31))]
        expected = sklearn_trustworthiness(points.numpy(), positions.numpy(), n_neighbors=k)
        assert float(torch.cat(found).mean()) == pytest.approx(expected, abs=1e-12)
        same = trustworthiness(points[:, :2], points[:, :2], range(31), k)
        assert torch.equal(same, torch.ones(31, dtype=torch.float64))


@pytest.mark.parametrize("form", FORMS)
def test_codes_of_files_are_the_eager_modules(form: str, tmp_path: Path) -> None:
    module, x = Network().eval(), images(20)
    model = loaded(module, form, tmp_path)
    values = module.one(module.first(x)).detach()
    for pool in (True, False):
        codes = values.mean((2, 3)) if pool else values.flatten(1)
        expected = PrincipalComponents(codes.double(), 3)
        found = run(
            PLUGIN, model, x, Targets.none(20), Recorder(6), layer="one", pool=pool, components=3
        )
        torch.testing.assert_close(found.components, expected.scores, rtol=1e-3, atol=1e-4)
        assert torch.equal(found.positions, found.components[:, :2])
        torch.testing.assert_close(found.explained_share, expected.share, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.logits, module(x).detach())
    assert torch.equal(found.predicted, module(x).argmax(1))
    assert found.divergence is None


@pytest.mark.parametrize(
    ("rows", "params", "field", "told"),
    [
        (3, {"method": "tsne"}, "params.method", "4 to 3000 rows, not 3"),
        (3001, {"method": "tsne"}, "params.method", "4 to 3000 rows, not 3001"),
        (9, {"method": "tsne", "perplexity": 9}, "params.perplexity", "9 is not below the 9 rows"),
        (2049, {"layer": "0", "pool": False}, "params.pool", "2049 codes of 2500 values"),
    ],
)
def test_what_would_take_too_long_is_refused(
    rows: int, params: dict[str, object], field: str, told: str
) -> None:
    model = classifier(nn.Sequential(nn.Linear(1, 2500), nn.Linear(2500, 2)), (1,))
    with pytest.raises(InvalidRequest, match=told) as caught:
        run(PLUGIN, model, torch.rand(rows, 1), Targets.none(rows), **params)
    assert caught.value.violations[0].field == field
