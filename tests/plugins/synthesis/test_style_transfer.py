"""Style transfer: Gram matrices and errors against numpy, identities, colours, several styles."""

from collections.abc import Iterator

import numpy
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from interpret_plugins.synthesis.colours import brightened, recoloured
from interpret_plugins.synthesis.feature_layers import content_layer, style_layers
from interpret_plugins.synthesis.spatial import Axes
from interpret_plugins.synthesis.style_transfer import (
    StyleTransfer,
    StyleTransferParams,
    StyleTransferResult,
    _Errors,
    gram,
)
from interpret_server.plugin import Batch, Cancelled, Classifier, InvalidRequest, Job, Targets
from interpret_server.testing import classifier, conformance

CONTENT_ONLY = {"style_weight": 0.0, "tv_weight": 0.0}
OPTIMIZERS = pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
IMAGES = Axes((2, 3), (1,))


def _run(
    model: Classifier,
    inputs: Tensor,
    style: Tensor | None = None,
    seeds: tuple[int, ...] | None = None,
    job: Job | None = None,
    **params: object,
) -> StyleTransferResult:
    rows = len(inputs)
    tensors = {} if style is None else {"style": style}
    batch = Batch(inputs, Targets.none(rows), seeds or tuple(range(rows)), tensors)
    made = StyleTransferParams.model_validate(params)
    plugin = StyleTransfer()
    plugin.check(model, made)
    return plugin.run(model, batch, made, job or Job())


def _network() -> nn.Sequential:
    torch.manual_seed(6)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(5 * 3 * 4, 3),
    ).double()


def _model() -> Classifier:
    return classifier(_network(), (3, 10, 12), bounds=(-1.0, 3.0), input_layout="CHW")


def _images(rows: int, *more: int, seed: int = 1) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.rand(rows, *more, 3, 10, 12, generator=source).double() * 4 - 1


def _flat() -> Classifier:
    linear = nn.Linear(6, 6).double()
    with torch.no_grad():
        linear.weight.copy_(torch.eye(6) + 0.2 * torch.randn(6, 6))
    network = nn.Sequential(linear, nn.Linear(6, 3).double())
    return classifier(network, (6,), bounds=(-9.0, 9.0))


def test_gram_matrices_equal_numpys() -> None:
    for shape in ((4, 3, 5), (4, 6), (4,)):
        values = torch.randn(2, *shape)
        for row, found in zip(values.double().numpy(), gram(values), strict=True):
            maps = row.reshape(shape[0], -1)
            expected = numpy.einsum("ip,jp->ij", maps, maps) / maps.size
            numpy.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_errors_equal_a_plain_computation() -> None:
    network, inputs, style = _network(), _images(2), _images(2, 2, seed=3)
    result = _run(
        _model(),
        inputs,
        style,
        content_layers=["4", "1"],
        style_layers=["1", "4"],
        style_layer_weights=[0.25, 2.0],
        style_weights=[3.0, 1.0],
        steps=3,
    )
    images = result.images
    for row in range(2):
        content = style_error = 0.0
        for end, weight in ((2, 0.25), (5, 2.0)):
            part = network[:end]
            own, kept = (part(x[row : row + 1])[0].detach().numpy() for x in (images, inputs))
            content += ((own - kept) ** 2).sum() / (kept**2).sum() / 2
            for number, share in ((0, 0.75), (1, 0.25)):
                aimed = part(style[row : row + 1, number])[0].detach().numpy()
                g, a = (
                    numpy.einsum("ihw,jhw->ij", maps, maps) / maps.size for maps in (own, aimed)
                )
                style_error += weight * share * ((g - a) ** 2).sum() / (a**2).sum()
        assert result.content_error is not None
        assert result.style_error is not None
        assert float(result.content_error[row]) == pytest.approx(content)
        assert float(result.style_error[row]) == pytest.approx(style_error)
    torch.testing.assert_close(result.logits, network(images))


@pytest.mark.parametrize("balance", ["relative", "mean"])
def test_gradients_agree_with_differences(balance: str) -> None:
    model, inputs = _model(), _images(1)
    batch = Batch(inputs, Targets.none(1), (0,), {"style": _images(1, 2, seed=3)})
    errors = _Errors(model, batch, StyleTransferParams())
    at = _images(1, seed=5)

    def value(x: Tensor) -> Tensor:
        content, style = errors(x, relative=balance == "relative")
        return content + style

    assert torch.autograd.gradcheck(value, at.requires_grad_(), atol=1e-6, fast_mode=True)


@OPTIMIZERS
def test_content_alone_returns_the_content_to_the_last_bit(optimizer: str) -> None:
    inputs = _images(2).float()
    model = classifier(_network().float(), (3, 10, 12), bounds=(-1.0, 3.0), input_layout="CHW")
    result = _run(model, inputs, optimizer=optimizer, steps=4, **CONTENT_ONLY)
    assert torch.equal(result.images, inputs)
    assert result.style_error is None


@OPTIMIZERS
def test_content_alone_is_found_from_noise_through_an_invertible_layer(optimizer: str) -> None:
    model, inputs = _flat(), torch.randn(3, 6, dtype=torch.float64)
    steps = {"lbfgs": 60, "adam": 800}[optimizer]
    result = _run(
        model,
        inputs,
        content_layers=["0"],
        start="noise",
        optimizer=optimizer,
        steps=steps,
        rate=None if optimizer == "lbfgs" else 0.01,
        **CONTENT_ONLY,
    )
    torch.testing.assert_close(result.images, inputs, rtol=0, atol=1e-3)


def test_style_alone_reaches_the_styles_gram_matrix() -> None:
    inputs, style = torch.randn(2, 2, 6, dtype=torch.float64).unbind(0)
    result = _run(
        _flat(), inputs, style, style_layers=["0"], content_weight=0.0, tv_weight=0.0, steps=200
    )
    assert result.content_error is None
    assert result.style_error is not None
    assert (result.style_error < 1e-6).all()


@OPTIMIZERS
@pytest.mark.parametrize("balance", ["relative", "mean"])
def test_the_style_comes_closer_and_images_stay_inside_the_bounds(
    optimizer: str, balance: str
) -> None:
    inputs, style = _images(2) / 4, _images(2, 1, seed=9).clamp(0, 3)
    settings: dict[str, object] = {"optimizer": optimizer, "balance": balance}
    settings |= {"tv_weight": 0.0, "style_weight": 1e4}
    first = _run(_model(), inputs, style, steps=1, rate=1e-6, **settings)
    last = _run(_model(), inputs, style, steps=40, **settings)
    assert first.style_error is not None
    assert last.style_error is not None
    assert (last.style_error < first.style_error / 2).all()
    assert -1 <= last.images.min() <= last.images.max() <= 3


def test_a_share_of_zero_leaves_a_style_out() -> None:
    inputs, styles = _images(2), _images(2, 2, seed=4)
    both = _run(_model(), inputs, styles, style_weights=[0.0, 2.0], steps=5)
    for one in (styles[:, 1], styles[:, 1:]):
        single = _run(_model(), inputs, one, steps=5)
        torch.testing.assert_close(both.images, single.images, rtol=0, atol=1e-9)
    other = _run(_model(), inputs, styles, steps=5)
    assert not torch.allclose(other.images, both.images)


@OPTIMIZERS
@pytest.mark.parametrize("start", ["content", "noise"])
def test_a_row_alone_equals_the_row_in_a_batch(optimizer: str, start: str) -> None:
    inputs, styles = _images(3), _images(3, 1, seed=4)
    settings: dict[str, object] = {"optimizer": optimizer, "start": start, "steps": 8}
    together = _run(_model(), inputs, styles, (4, 5, 6), colours="matched", **settings)
    for row in range(3):
        one = slice(row, row + 1)
        alone = _run(_model(), inputs[one], styles[one], (4 + row,), colours="matched", **settings)
        torch.testing.assert_close(alone.images[0], together.images[row], rtol=0, atol=1e-7)


def test_luminance_alone_keeps_the_differences_between_channels() -> None:
    inputs, style = _images(1) / 8 + 0.5, _images(1, 1, seed=4) / 8 + 0.5
    images = _run(_model(), inputs, style, colours="luminance", steps=5, style_weight=1.0).images
    torch.testing.assert_close(images.diff(dim=1), inputs.diff(dim=1))
    assert not torch.allclose(images, inputs)


def test_brightness_is_luma_of_three_channels_and_the_mean_of_others() -> None:
    x, other = _images(2, seed=3).unbind(0)
    weights = torch.tensor([0.299, 0.587, 0.114]).double().view(1, 3, 1, 1)
    found = brightened(x[None], other[None], IMAGES)
    torch.testing.assert_close((found * weights).sum(1), (other[None] * weights).sum(1))
    pair = torch.rand(2, 1, 2, 4, 4)
    found = brightened(*pair, IMAGES)
    torch.testing.assert_close(found.mean(1), pair[1].mean(1))
    flat = torch.rand(2, 1, 6)
    assert brightened(*flat, Axes((), ())) is not flat[0]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_recoloured_pixels_have_the_mean_and_the_covariance_of_the_other(channels: int) -> None:
    pair = torch.rand(2, 4, channels, 9, 7, dtype=torch.float64)
    x, other = pair[0], pair[1] ** 2
    found = recoloured(x, other, IMAGES)
    for row in range(4):
        made, aim = (numpy.asarray(y[row].flatten(1)) for y in (found, other))
        numpy.testing.assert_allclose(made.mean(1), aim.mean(1), atol=1e-12)
        numpy.testing.assert_allclose(numpy.cov(made), numpy.cov(aim), atol=1e-12)
    grey = torch.ones_like(x)
    assert recoloured(grey, other, IMAGES).isfinite().all()
    vector = torch.rand(2, 6)
    assert recoloured(vector, vector, Axes((), ())) is vector


def test_default_layers_are_the_first_wide_ones_of_each_resolution() -> None:
    assert [layer.name for layer in style_layers(_model())] == ["1", "4"]
    assert content_layer(_model()).name == "1"
    squeezed = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 2, 1),
        nn.ReLU(),
        nn.Conv2d(2, 8, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 2, 1),
        nn.ReLU(),
        nn.Conv2d(2, 9, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(81, 3),
    )
    model = classifier(squeezed, (3, 6, 6), input_layout="CHW")
    assert [layer.name for layer in style_layers(model)] == ["1", "10"]
    assert content_layer(model).name == "5"


def test_signals_and_volumes_take_styles() -> None:
    signal = nn.Sequential(nn.Conv1d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))
    volume = nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3))
    for shape, network in {(2, 8): signal, (1, 4, 4, 4): volume}.items():
        layout = "CL" if shape == (2, 8) else "other"
        model = classifier(network.double(), shape, input_layout=layout)
        inputs, style = torch.rand(2, *shape).double(), torch.rand(2, 3, *shape).double()
        images = _run(model, inputs, style, steps=5, colours="luminance").images
        assert images.shape == inputs.shape
        assert not torch.allclose(images, inputs)


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
        _run(_model(), _images(1), _images(1, 1), job=job)
    assert job.seen == 3


@pytest.mark.parametrize(
    ("style", "params", "message"),
    [
        (None, {}, "tensors.style: give the styles"),
        (torch.zeros(2, 1, 3, 10, 11), {}, "tensors.style: it must be"),
        (torch.zeros(2, 5), {}, "tensors.style: it must be"),
        (torch.zeros(2, 2, 3, 10, 12), {"style_weights": [1.0]}, "each of the 2 styles"),
        (torch.zeros(2, 1, 3, 10, 12), {"style_weights": [0.0]}, "above 0"),
        (None, {"style_layers": ["1"], "style_layer_weights": []}, "one weight for each"),
        (None, {"content_layers": ["77"]}, "no layer '77'"),
    ],
)
def test_what_does_not_fit_is_refused(
    style: Tensor | None, params: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        _run(_model(), _images(2), style, **params)


@pytest.mark.parametrize("params", [{"style_weight": -1}, {"colours": "grey"}, {"steps": 0}])
def test_bad_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        StyleTransferParams.model_validate(params)


@OPTIMIZERS
def test_keeps_the_contract(optimizer: str) -> None:
    def styles(model: Classifier, rows: int) -> dict[str, Tensor]:
        values = torch.linspace(0, 1, model.neutral(1).numel()).to(model.neutral(1))
        style = values.view(1, 1, *model.input_shape)
        return {"style": style.expand(rows, 2, *model.input_shape).clone()}

    conformance(StyleTransfer, params={"steps": 3, "optimizer": optimizer}, tensors=styles)
