"""Activation maximisation: closed forms, terms, diversity, penalties, every kind of target."""

from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from interpret_plugins.synthesis.activation_maximization import (
    ActivationMaximization,
    ActivationMaximizationParams,
    ActivationMaximizationResult,
)
from interpret_server.models.targets import TargetKind
from interpret_server.plugin import Batch, Cancelled, Classifier, InvalidRequest, Job, Targets
from interpret_server.testing import classifier, conformance

PLAIN = {"parameterization": "pixel", "jitter": 0, "scale": (1, 1), "rotation": 0}


def _run(
    model: Classifier,
    targets: Targets,
    seeds: tuple[int, ...] | None = None,
    inputs: Tensor | None = None,
    job: Job | None = None,
    **params: object,
) -> ActivationMaximizationResult:
    rows = len(targets)
    batch = Batch(
        model.neutral(rows) if inputs is None else inputs,
        targets,
        seeds or tuple(range(rows)),
        has_inputs=inputs is not None,
    )
    made = ActivationMaximizationParams.model_validate(params)
    plugin = ActivationMaximization()
    plugin.check(model, made)
    return plugin.run(model, batch, made, job or Job())


def _network(channels: int = 3) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 4 * 6, 3),
    ).double()


def _model(channels: int = 3, bounds: tuple[float, float] | None = (0.0, 1.0)) -> Classifier:
    return classifier(_network(channels), (channels, 12, 16), bounds=bounds, input_layout="CHW")


def _targets(kind: TargetKind, *index: tuple[int, ...], layer: str | None = "4") -> Targets:
    return Targets(kind, torch.tensor(index), layer)


def _linear() -> tuple[nn.Linear, Classifier]:
    linear = nn.Linear(6, 4).double()
    return linear, classifier(nn.Sequential(linear), (6,), bounds=(-3.0, 5.0))


def test_a_linear_unit_with_a_square_penalty_reaches_its_closed_form() -> None:
    linear, model = _linear()
    weight, l2 = linear.weight.detach(), 4.0
    result = _run(
        model, Targets.classes(torch.tensor([0, 2])), l2=l2, steps=1500, rate=0.01, **PLAIN
    )
    optimum = model.centre + model.scale * (model.scale * weight[[0, 2]] / (2 * l2)).clamp(
        -0.5, 0.5
    )
    torch.testing.assert_close(result.images, optimum, rtol=0, atol=1e-4)
    torch.testing.assert_close(result.target_value, model(result.images)[[0, 1], [0, 2]])


def test_a_linear_unit_with_an_absolute_penalty_keeps_its_strong_inputs_only() -> None:
    linear, model = _linear()
    weight = model.scale * linear.weight.detach()[1]
    l1 = float(weight.abs().sort().values[2:4].mean())
    result = _run(model, Targets.classes(torch.tensor([1])), l1=l1, steps=1500, **PLAIN)
    expected = torch.where(weight.abs() > l1, weight.sign() / 2, 0)
    found = (result.images[0] - model.centre) / model.scale
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


def test_total_variation_makes_images_smoother() -> None:
    target = _targets(TargetKind.CHANNEL, (1,))
    rough, smooth = (
        _run(_model(), target, steps=60, total_variation=weight, **PLAIN).images
        for weight in (0.0, 1.0)
    )
    assert smooth.diff(dim=3).square().sum() < rough.diff(dim=3).square().sum() / 4


@pytest.mark.parametrize("form", ["pixel", "fourier"])
def test_a_difference_of_targets_is_maximised_as_one_direction(form: str) -> None:
    model, settings = _model(), {"steps": 20, "parameterization": form}
    signs = torch.tensor([[0.0, 1.0, 0.0, -0.5, 0.0]], dtype=torch.float64)
    direction = Targets(TargetKind.DIRECTION, torch.zeros(1, 0).long(), "4", signs)
    expected = _run(model, direction, (3,), **settings)
    for term in ({"channel": 3}, {"direction": [0.0, 0.0, 0.0, 1.0, 0.0]}):
        found = _run(
            model,
            _targets(TargetKind.CHANNEL, (1,)),
            (3,),
            terms=[{"weight": -0.5, "layer": "4", **term}],
            **settings,
        )
        torch.testing.assert_close(found.images, expected.images, rtol=0, atol=1e-9)
        torch.testing.assert_close(found.score, expected.target_value)


def test_terms_of_several_layers_and_the_logits_are_added() -> None:
    terms = [
        {"weight": 0.5, "layer": "1"},
        {"weight": -2.0, "channel": 1},
        {"weight": 3.0, "layer": "4", "neuron": [2, 1, 0]},
    ]
    network = _network()
    result = _run(_model(), Targets.classes(torch.tensor([0, 2])), terms=terms, steps=3)
    x = result.images
    logits, layer = network(x), network[:5](x)
    expected = logits[[0, 1], [0, 2]] + 0.5 * network[:2](x).flatten(1).mean(1)
    expected = expected - 2 * logits[:, 1] + 3 * layer[:, 2, 1, 0]
    torch.testing.assert_close(result.score, expected)
    torch.testing.assert_close(result.target_value, logits[[0, 1], [0, 2]])
    torch.testing.assert_close(result.logits, logits)


@pytest.mark.parametrize("form", ["pixel", "fourier"])
@pytest.mark.parametrize(
    "target",
    [
        _targets(TargetKind.NEURON, (2, 1, 0), (1, 3, 5), layer="3"),
        _targets(TargetKind.CHANNEL, (0,), (4,), layer="1"),
        Targets(TargetKind.LAYER, torch.zeros(2, 0).long(), "4"),
        Targets.classes(torch.tensor([0, 2])),
    ],
    ids=lambda target: target.kind,
)
def test_every_kind_of_target_rises(form: str, target: Targets) -> None:
    model = _model()
    before, _ = model.objective(model.neutral(2), target)
    result = _run(model, target, parameterization=form, steps=40)
    assert (result.target_value > before).all()
    value, _ = model.objective(result.images, target)
    torch.testing.assert_close(result.target_value, value)
    assert 0 <= result.images.min() <= result.images.max() <= 1


def test_variants_become_different_by_the_diversity_term() -> None:
    target = _targets(TargetKind.CHANNEL, (1,), (2,), layer="1")
    settings: dict[str, object] = {"variants": 3, "steps": 60}
    free, apart = (_run(_model(), target, diversity=d, **settings) for d in (0.0, 3.0))
    assert free.similarity is not None
    assert apart.similarity is not None
    assert apart.variants is not None
    assert (apart.similarity < free.similarity).all()
    assert apart.variants.shape == (2, 3, 3, 12, 16)
    assert torch.equal(apart.variants[:, 0], apart.images)
    values = torch.stack([_model().objective(v, target)[0] for v in apart.variants.unbind(1)], 1)
    assert (values.diff(dim=1) <= 0).all()
    torch.testing.assert_close(apart.target_value, values[:, 0])


@pytest.mark.parametrize("most", [1, 4, 64])
def test_passes_hold_whole_rows_of_variants(most: int) -> None:
    job = Job()
    job.max_rows = most
    target = _targets(TargetKind.CHANNEL, (1,), (2,), (3,))
    settings: dict[str, object] = {"variants": 2, "steps": 4}
    found = _run(_model(), target, job=job, **settings)
    expected = _run(_model(), target, **settings)
    torch.testing.assert_close(found.variants, expected.variants, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", ["pixel", "fourier"])
@pytest.mark.parametrize("variants", [1, 2])
def test_a_row_alone_equals_the_row_in_a_batch(form: str, variants: int) -> None:
    target = _targets(TargetKind.CHANNEL, (1,), (2,), (3,))
    settings: dict[str, object] = {"parameterization": form, "variants": variants, "steps": 8}
    together = _run(_model(), target, (5, 6, 7), **settings)
    for row in range(3):
        one = target.take(slice(row, row + 1))
        alone = _run(_model(), one, (5 + row,), **settings)
        torch.testing.assert_close(alone.images[0], together.images[row], rtol=0, atol=1e-8)


def test_seeds_decide_the_image_and_inputs_are_the_start() -> None:
    target = _targets(TargetKind.CHANNEL, (1,))
    first, again, other = (_run(_model(), target, (s,), steps=4).images for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    inputs = torch.rand(1, 3, 12, 16).double()
    for form in ("pixel", "fourier"):
        start = _run(
            _model(), target, inputs=inputs, steps=1, rate=1e-9, parameterization=form
        ).images
        assert float((start - inputs).abs().max()) < 0.06
        assert float((start - inputs).abs().mean()) < 0.02


@pytest.mark.parametrize("form", ["pixel", "fourier"])
def test_any_number_of_channels_and_axes(form: str) -> None:
    signal = nn.Sequential(nn.Conv1d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(42, 3))
    volume = nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    flat = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    models = [_model(5), _model(1, None)]
    for shape, network in {(2, 9): signal, (1, 4, 3, 5): volume, (6,): flat}.items():
        layout = "CL" if shape == (2, 9) else "other"
        models.append(classifier(network.double(), shape, bounds=(-2, 6), input_layout=layout))
    for model in models:
        targets = Targets.classes(torch.tensor([0, 2]))
        result = _run(model, targets, steps=25, parameterization=form, variants=2)
        assert result.images.shape == (2, *model.input_shape)
        assert (result.target_value > model(model.neutral(2))[[0, 1], [0, 2]]).all()


def test_cancellation_stops_within_a_step() -> None:
    class Stopping(Job):
        seen = 0

        def track(self, total: int) -> Iterator[int]:
            for step in range(total):
                if step == 3:
                    raise Cancelled("gone")
                self.seen += 1
                yield step

    job = Stopping()
    with pytest.raises(Cancelled):
        _run(_model(), _targets(TargetKind.CHANNEL, (1,)), job=job, steps=10)
    assert job.seen == 3


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"channel": 3}, r"params\.terms\.0: channel 3 is out of range"),
        ({"layer": "4", "neuron": [1, 2]}, "a neuron takes 3 indices"),
        ({"layer": "4", "direction": [1.0]}, "the direction has shape"),
        ({"layer": "44"}, "no layer '44'"),
    ],
)
def test_terms_that_the_model_does_not_have_are_refused(
    term: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        _run(_model(), Targets.classes(torch.tensor([0])), terms=[{"weight": 1, **term}])


@pytest.mark.parametrize(
    "params",
    [
        {"terms": [{"weight": 1, "channel": 1, "neuron": [1]}]},
        {"scale": (1.1, 0.9)},
        {"variants": 0},
        {"parameterization": "wavelet"},
    ],
)
def test_bad_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ActivationMaximizationParams.model_validate(params)


def test_keeps_the_contract() -> None:
    conformance(ActivationMaximization, params={"steps": 4, "parameterization": "pixel"})


def test_a_dead_unit_is_reported() -> None:
    class Listening(Job):
        heard: tuple[list[bool], str] | None = None

        def warn(self, rows: Tensor, message: str) -> None:
            if rows.any():
                self.heard = rows.tolist(), message

    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(3, 4))
        network[0].bias.copy_(torch.tensor([0.1, -9.0, 0.1]))
    job = Listening()
    targets = _targets(TargetKind.NEURON, (0,), (1,), layer="1")
    _run(classifier(network, (4,)), targets, job=job, steps=3)
    assert job.heard is not None
    assert job.heard[0] == [False, True]
    assert "gradient was zero" in job.heard[1]
