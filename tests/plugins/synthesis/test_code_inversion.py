"""Code inversion: exact inverses, scale rules, optimisers, independence of rows."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from interpret_plugins.synthesis.code_inversion import (
    CodeInversion,
    CodeInversionParams,
    CodeInversionResult,
)
from interpret_plugins.synthesis.descent import LBFGS, Momentum, Point
from interpret_server.plugin import Batch, Classifier, InvalidRequest, Job, Targets
from interpret_server.testing import classifier, conformance

FREE = {"alpha_weight": 0.0, "tv_weight": 0.0}
OPTIMIZERS = pytest.mark.parametrize("optimizer", ["momentum", "adam", "lbfgs"])


def _run(
    model: Classifier,
    inputs: Tensor | None,
    seeds: tuple[int, ...] | None = None,
    code: Tensor | None = None,
    job: Job | None = None,
    **params: object,
) -> CodeInversionResult:
    rows = len(inputs) if inputs is not None else 1 if code is None else len(code)
    batch = Batch(
        model.neutral(rows) if inputs is None else inputs,
        Targets.none(rows),
        seeds or tuple(range(rows)),
        {} if code is None else {"code": code},
        has_inputs=inputs is not None,
    )
    made = CodeInversionParams.model_validate(params)
    plugin = CodeInversion()
    plugin.check(model, made)
    return plugin.run(model, batch, made, job or Job())


def _invertible() -> Classifier:
    linear = nn.Linear(6, 6).double()
    with torch.no_grad():
        linear.weight.copy_(torch.eye(6) + 0.2 * torch.randn(6, 6))
    return classifier(nn.Sequential(linear, nn.ReLU(), nn.Linear(6, 3)).double(), (6,))


class _Pixels(nn.Module):
    """A small network on inputs of any width of bounds."""

    def __init__(self, width: float) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.width = width
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(100, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x / self.width)
        return logits


def _pixels(width: float = 1.0) -> Classifier:
    network = _Pixels(width).double()
    return classifier(network, (1, 5, 5), bounds=(0.0, width), input_layout="CHW")


def _layer(model: Classifier, ending: str) -> str:
    return next(name for name in model.layers if name.endswith(ending))


@OPTIMIZERS
def test_invertible_layer_gives_the_input_back(optimizer: str) -> None:
    model, inputs = _invertible(), torch.rand(3, 6, dtype=torch.float64)
    options = {"momentum": {"steps": 3000, "rate": 0.05}, "adam": {"steps": 1500}}
    given = options.get(optimizer, {"steps": 60})
    result = _run(model, inputs, layer="0", optimizer=optimizer, **FREE, **given)
    torch.testing.assert_close(result.images, inputs, rtol=0, atol=1e-4)
    assert (result.reconstruction_error < 1e-8).all()


def test_error_is_that_of_the_returned_images() -> None:
    model, inputs = _pixels(), torch.rand(2, 1, 5, 5, dtype=torch.float64)
    layer = _layer(model, "1")
    result = _run(model, inputs, layer=layer, steps=15)
    (code,), (reached,) = (model.activations(x, [layer]) for x in (inputs, result.images))
    expected = (reached - code).square().flatten(1).sum(1) / code.square().flatten(1).sum(1)
    torch.testing.assert_close(result.reconstruction_error, expected)
    torch.testing.assert_close(result.logits, model(result.images))
    assert 0 <= result.images.min() <= result.images.max() <= 1


def test_without_a_layer_the_logits_are_inverted() -> None:
    model, inputs = _pixels(), torch.rand(2, 1, 5, 5, dtype=torch.float64)
    result = _run(model, inputs, optimizer="lbfgs", steps=60, clip=False, **FREE)
    torch.testing.assert_close(model(result.images), model(inputs), rtol=0, atol=1e-3)


@OPTIMIZERS
@pytest.mark.parametrize("balance", ["reference", "none"])
def test_bounds_of_0_to_1_and_of_0_to_255_give_the_same_picture(
    optimizer: str, balance: str
) -> None:
    inputs = torch.rand(2, 1, 5, 5, dtype=torch.float64)
    options: dict[str, object] = {"optimizer": optimizer, "balance": balance, "steps": 12}
    if balance == "none":
        options |= {"alpha_weight": 1e-14, "tv_weight": 1e-5, "rate": 0.05}
        if optimizer == "momentum":
            options |= {"rate": 3e4}
    unit = _run(_pixels(1.0), inputs, **options)
    byte = _run(_pixels(255.0), inputs * 255, **options)
    torch.testing.assert_close(byte.images / 255, unit.images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("balance", ["reference", "none"])
def test_weights_and_rates_carry_over_between_pixel_scales(balance: str) -> None:
    model, inputs = _pixels(), torch.rand(2, 1, 5, 5, dtype=torch.float64)
    alpha, beta, s = 4.0, 3.0, 255.0
    shared = {"optimizer": "momentum", "alpha": alpha, "tv_beta": beta, "balance": balance}
    reference = balance == "reference"
    rate = 0.004 if reference else 3e4
    published = _run(
        model,
        inputs,
        pixel_scale=s,
        alpha_weight=1e-9 if reference else 1e-10,
        tv_weight=1e-2 if reference else 1e-8,
        rate=rate,
        steps=12,
        **shared,
    )
    divided = s**2 if reference else 1.0
    carried = _run(
        model,
        inputs,
        pixel_scale=1.0,
        alpha_weight=(1e-9 if reference else 1e-10) * s**alpha / divided,
        tv_weight=(1e-2 if reference else 1e-8) * s**beta / divided,
        rate=rate if reference else rate / s**2,
        steps=12,
        **shared,
    )
    torch.testing.assert_close(carried.images, published.images, rtol=0, atol=1e-9)
    plain = _run(model, inputs, rate=rate, steps=12, **FREE, **shared)
    assert not torch.allclose(plain.images, published.images, atol=1e-3)


@OPTIMIZERS
def test_a_row_alone_equals_the_row_in_a_batch(optimizer: str) -> None:
    model, inputs = _pixels(), torch.rand(3, 1, 5, 5, dtype=torch.float64)
    together = _run(model, inputs, (4, 5, 6), optimizer=optimizer, steps=20)
    for row in range(3):
        alone = _run(model, inputs[row : row + 1], (4 + row,), optimizer=optimizer, steps=20)
        torch.testing.assert_close(alone.images[0], together.images[row], rtol=0, atol=1e-8)


def test_seeds_decide_the_reconstruction() -> None:
    model, inputs = _pixels(), torch.rand(1, 1, 5, 5, dtype=torch.float64)
    first, again, other = (_run(model, inputs, (s,), steps=3).images for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_a_code_alone_is_inverted_and_inputs_then_are_the_start() -> None:
    model, inputs = _invertible(), torch.rand(2, 6, dtype=torch.float64)
    (code,) = model.activations(inputs, ["0"])
    options = {"layer": "0", "optimizer": "lbfgs", "steps": 60, **FREE}
    torch.testing.assert_close(
        _run(model, None, code=code, **options).images, inputs, rtol=0, atol=1e-4
    )
    stays = _run(model, inputs, code=code, layer="0", steps=1, **FREE)
    torch.testing.assert_close(stays.images, inputs)


def test_neither_inputs_nor_code_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="inputs to reconstruct"):
        _run(_invertible(), None)


def test_a_code_of_another_shape_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"shape \[6\], not \[5\]"):
        _run(_invertible(), None, code=torch.zeros(1, 5, dtype=torch.float64), layer="0")


def test_an_unknown_layer_is_refused_with_close_names() -> None:
    with pytest.raises(InvalidRequest, match="did you mean"):
        _run(_pixels(), torch.rand(1, 1, 5, 5, dtype=torch.float64), layer="body.00")


def test_a_code_of_zeros_is_reported() -> None:
    class Listening(Job):
        heard: str = ""

        def warn(self, rows: Tensor, message: str) -> None:
            if rows.any():
                assert rows.tolist() == [True, False]
                self.heard = message

    code, job = torch.zeros(2, 6, dtype=torch.float64), Listening()
    code[1] = 1
    result = _run(_invertible(), None, code=code, job=job, layer="0", steps=3)
    assert "all zeros" in job.heard
    assert result.reconstruction_error.isfinite().all()


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "lbfgs"])
def test_signals_and_flat_vectors_are_reconstructed(optimizer: str) -> None:
    network = nn.Sequential(nn.Conv1d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))
    signal = classifier(network.double(), (2, 8), input_layout="CL")
    inputs = torch.rand(2, 2, 8, dtype=torch.float64)
    start = _run(signal, inputs, layer="1", optimizer=optimizer, steps=1)
    end = _run(signal, inputs, layer="1", optimizer=optimizer, steps=100)
    assert (end.reconstruction_error < start.reconstruction_error).all()
    flat = _run(_invertible(), torch.rand(2, 6).double(), optimizer=optimizer, steps=20)
    assert flat.images.shape == (2, 6)


def test_momentum_is_forgotten_when_the_rate_changes() -> None:
    minimizer = Momentum(0.5, lambda z: z)

    def evaluate(z: Tensor) -> Point:
        return Point(z, z[:, 0], torch.ones_like(z))

    point, path = evaluate(torch.zeros(1, 1)), []
    for rate in (1.0, 1.0, 0.1, 0.1):
        point = minimizer.step(point, evaluate, rate)
        path.append(point.z.item())
    assert path == pytest.approx([-1.0, -2.5, -2.6, -2.75])


def test_published_schedule_changes_the_rate_after_100_and_300_steps() -> None:
    params = CodeInversionParams(steps=400)
    factors = [params.factor(step) for step in range(400)]
    assert factors == [1.0] * 100 + [0.1] * 200 + [0.01] * 100


def test_lbfgs_minimises_the_rosenbrock_function_from_each_start() -> None:
    def evaluate(z: Tensor) -> Point:
        leaf = z.clone().requires_grad_()
        x, y = leaf.unbind(1)
        value = (1 - x) ** 2 + 100 * (y - x**2) ** 2
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return Point(z, value.detach(), gradient)

    minimizer = LBFGS(0.1)
    point = evaluate(torch.tensor([[-1.2, 1.0], [2.0, -1.0], [1.0, 1.0]], dtype=torch.float64))
    for _ in range(80):
        following = minimizer.step(point, evaluate, 1.0)
        assert (following.value <= point.value).all()
        point = following
    torch.testing.assert_close(point.z, torch.ones(3, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    "params", [{"optimizer": "sgd"}, {"schedule": ((0.5, 1.0),)}, {"alpha": 0.5}, {"tv_beta": 0}]
)
def test_bad_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CodeInversionParams.model_validate(params)


@OPTIMIZERS
def test_keeps_the_contract(optimizer: str) -> None:
    conformance(CodeInversion, params={"steps": 4, "optimizer": optimizer})


def test_digits_are_recognised_after_inversion(
    digit_network: nn.Module, digit_images: tuple[Tensor, Tensor]
) -> None:
    model, inputs = classifier(digit_network, (1, 8, 8)), digit_images[0][:6]
    result = _run(model, inputs, layer="3", steps=100)
    assert (result.reconstruction_error < 0.1).all()
    assert torch.equal(result.logits.argmax(1), model(inputs).argmax(1))
    both = torch.stack([result.images.flatten(), inputs.flatten()])
    assert both.corrcoef()[0, 1] > 0.9
