"""DeepDream: octaves against a plain loop, guides against brute force, closed forms."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from interpret_plugins.synthesis.deep_dream import (
    DeepDream,
    DeepDreamParams,
    DeepDreamResult,
    nearest_features,
)
from interpret_plugins.synthesis.feature_layers import middle_layer, resolutions
from interpret_plugins.synthesis.views import random_windows
from interpret_server.plugin import Batch, Cancelled, Classifier, InvalidRequest, Job, Targets
from interpret_server.testing import classifier


def _run(
    model: Classifier,
    inputs: Tensor,
    seeds: tuple[int, ...] | None = None,
    guide: Tensor | None = None,
    job: Job | None = None,
    **params: object,
) -> DeepDreamResult:
    rows = len(inputs)
    tensors = {} if guide is None else {"guide": guide}
    batch = Batch(inputs, Targets.none(rows), seeds or tuple(range(rows)), tensors)
    made = DeepDreamParams.model_validate(params)
    plugin = DeepDream()
    plugin.check(model, made)
    return plugin.run(model, batch, made, job or Job())


def _network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 4 * 6, 3),
    ).double()


def _model() -> Classifier:
    return classifier(_network(), (2, 12, 16), bounds=(-1.0, 3.0), input_layout="CHW")


def _inputs(rows: int = 2) -> Tensor:
    values = torch.rand(rows, 2, 12, 16, generator=torch.Generator().manual_seed(1))
    return values.double() * 4 - 1


def _seen(x: Tensor, windows: Tensor) -> Tensor:
    """`grid_sample` with reflection, which repeats the edge pixel: windows of 12 x 16 pixels."""
    height, width = x.shape[2:]
    rows = []
    for row, window in zip(x, windows.to(x), strict=True):
        axes = [
            start + (torch.arange(count).double() + 0.5) / count * (end - start)
            for (start, end), count in zip(window, (12, 16), strict=True)
        ]
        down, right = torch.meshgrid(
            axes[0] / height * 2 - 1, axes[1] / width * 2 - 1, indexing="ij"
        )
        grid = torch.stack([right, down], -1)[None]
        rows.append(
            F.grid_sample(
                row[None], grid, "bilinear", padding_mode="reflection", align_corners=False
            )[0]
        )
    return torch.stack(rows)


def test_octaves_equal_a_plain_loop_on_the_eager_network() -> None:
    network, inputs, seeds, rate = _network(), _inputs(), (7, 8), 0.02
    detail, step = torch.zeros(2, 2, 6, 8).double(), 0
    for size in ((6, 8), (9, 11), (12, 16)):
        base = F.interpolate(inputs, size, mode="bilinear", align_corners=False)
        detail = F.interpolate(detail, size, mode="bilinear", align_corners=False)
        for _ in range(4):
            image = (base + detail).requires_grad_()
            share = max(12 / size[0], 16 / size[1])
            jitter = min(1.0, size[0] / 7)
            windows = random_windows(seeds, step, size, zoom=(share, share), jitter=jitter)
            layers = network[:5](_seen(image, windows)), network[:2](_seen(image, windows))
            (2 * layers[0].square().sum() / 2 - layers[1].square().sum() / 2).backward()
            gradient = image.grad
            ascent = gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
            image = (image.detach() + 4 * rate * ascent).clamp(-1, 3)
            detail, step = image - base, step + 1
    result = _run(
        _model(),
        inputs,
        seeds,
        layers=["4", "1"],
        layer_weights=[2.0, -1.0],
        steps=4,
        rate=rate,
        octaves=3,
        octave_ratio=1.4,
        smallest=6,
        jitter=1.0,
    )
    torch.testing.assert_close(result.images, inputs + detail, rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", ["mean", "squared_norm"])
def test_the_objective_is_that_of_the_layers(objective: str) -> None:
    network, inputs = _network(), _inputs()
    result = _run(_model(), inputs, layers=["1", "4"], objective=objective, steps=3)
    for found, x in ((result.objective_before, inputs), (result.objective, result.images)):
        layers = network[:2](x).flatten(1), network[:5](x).flatten(1)
        means = sum(layer.mean(1) for layer in layers)
        norms = sum(layer.square().sum(1) / 2 for layer in layers)
        torch.testing.assert_close(found, means if objective == "mean" else norms)
    assert (result.objective > result.objective_before).all()
    torch.testing.assert_close(result.logits, network(result.images))


def test_a_linear_layer_gives_steps_along_its_mean_weight() -> None:
    linear = nn.Linear(6, 4).double()
    model = classifier(nn.Sequential(linear, nn.Linear(4, 3).double()), (6,), bounds=(-10.0, 10.0))
    inputs = torch.randn(2, 6, dtype=torch.float64)
    result = _run(model, inputs, layers=["0"], objective="mean", steps=5, rate=0.01, octaves=1)
    weight = linear.weight.detach().mean(0)
    torch.testing.assert_close(result.images, inputs + 5 * 0.01 * 20 * weight / weight.abs().mean())


def test_zero_steps_give_the_image_to_the_last_bit() -> None:
    inputs = _inputs().float()
    model = classifier(_network().float(), (2, 12, 16), bounds=(-1.0, 3.0))
    assert torch.equal(_run(model, inputs, steps=0, smallest=2).images, inputs)


def test_guided_positions_take_the_features_they_resemble_most() -> None:
    values, guide = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 2, 3)
    found = nearest_features(values, guide)
    for row in range(2):
        for i in range(4):
            for j in range(5):
                features = guide[row].flatten(1).T
                best = max(features, key=lambda g: float(g @ values[row, :, i, j]))
                assert torch.equal(found[row, :, i, j], best)
    vector, other = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(nearest_features(vector, other), other)


def test_a_guide_draws_the_layers_to_itself() -> None:
    inputs, guide = _inputs(2), _inputs(4)[2:]
    settings: dict[str, object] = {"layers": ["4"], "octaves": 1, "steps": 4}
    plain, guided = (_run(_model(), inputs, guide=g, **settings) for g in (None, guide))
    assert not torch.allclose(plain.images, guided.images)
    network = _network()[:5]
    for row in range(2):
        similar = torch.einsum(
            "cp,cq->pq", network(guided.images)[row].flatten(1), network(guide)[row].flatten(1)
        )
        torch.testing.assert_close(guided.objective[row], similar.max(1).values.sum())
    assert (guided.objective > guided.objective_before).all()


@pytest.mark.parametrize("guided", [False, True])
def test_a_row_alone_equals_the_row_in_a_batch(guided: bool) -> None:
    inputs, guide = _inputs(3), _inputs(3).flip(0) if guided else None
    settings: dict[str, object] = {"steps": 5, "smallest": 6}
    together = _run(_model(), inputs, (4, 5, 6), guide, **settings)
    for row in range(3):
        one = slice(row, row + 1)
        part = None if guide is None else guide[one]
        alone = _run(_model(), inputs[one], (4 + row,), part, **settings)
        torch.testing.assert_close(alone.images[0], together.images[row], rtol=0, atol=1e-8)


def test_seeds_decide_the_dream() -> None:
    first, again, other = (_run(_model(), _inputs(1), (s,)).images for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_signals_volumes_and_flat_vectors_dream_within_bounds() -> None:
    signal = nn.Sequential(nn.Conv1d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))
    volume = nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3))
    flat = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    shapes = {(2, 8): signal, (1, 4, 4, 4): volume, (6,): flat}
    for shape, network in shapes.items():
        layout = "CL" if shape == (2, 8) else "other"
        model = classifier(network.double(), shape, input_layout=layout)
        result = _run(model, torch.rand(2, *shape).double(), smallest=4, rate=0.1)
        assert result.images.shape == (2, *shape)
        assert 0 <= result.images.min() <= result.images.max() <= 1
        assert (result.objective > result.objective_before).all()


def test_the_default_layer_is_the_last_of_the_last_resolution_but_one() -> None:
    assert [[layer.name for layer in group] for group in resolutions(_model())] == [["1"], ["4"]]
    assert middle_layer(_model()).name == "1"
    linear = classifier(nn.Linear(4, 3), (4,))
    with_layers = classifier(nn.Sequential(nn.Linear(4, 3)), (4,))
    assert middle_layer(with_layers).name == "0"
    assert resolutions(linear)


def test_a_layer_without_gradient_is_reported() -> None:
    class Listening(Job):
        heard: tuple[list[bool], str] | None = None

        def warn(self, rows: Tensor, message: str) -> None:
            if rows.any():
                self.heard = rows.tolist(), message

    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(4))
        network[0].bias.fill_(-0.5)
    inputs, job = torch.tensor([[0.2] * 4, [0.9] * 4], dtype=torch.float64), Listening()
    result = _run(classifier(network, (4,)), inputs, job=job, layers=["1"])
    assert job.heard is not None
    assert job.heard[0] == [True, False]
    assert torch.equal(result.images[0], inputs[0])


def test_progress_counts_the_steps_of_all_octaves_and_cancellation_stops_them() -> None:
    class Stopping(Job):
        total = seen = 0

        def track(self, total: int) -> Iterator[int]:
            self.total = total
            for step in range(total):
                if step == 7:
                    raise Cancelled("gone")
                self.seen += 1
                yield step

    job = Stopping()
    with pytest.raises(Cancelled):
        _run(_model(), _inputs(), job=job, octaves=2, steps=5, smallest=6)
    assert (job.total, job.seen) == (10, 7)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layers": ["9"]}, "no layer '9'"),
        ({"layers": ["1"], "layer_weights": [1.0, 2.0]}, "one weight for each"),
        ({"layer_weights": [1.0]}, "one weight for each"),
    ],
)
def test_layers_that_do_not_fit_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        _run(_model(), _inputs(), **params)


@pytest.mark.parametrize("params", [{"layers": []}, {"steps": -1}, {"octave_ratio": 1}])
def test_bad_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DeepDreamParams.model_validate(params)
