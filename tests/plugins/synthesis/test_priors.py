"""Priors: densities in closed form, scores as gradients of the log densities."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from interpret_plugins.priors.gaussian import Gaussian
from interpret_plugins.priors.log_prob_model import LogProbModel
from interpret_plugins.priors.prior import PriorResult, PriorSum
from interpret_plugins.priors.score_model import ScoreModel
from interpret_plugins.priors.smoothness import Smoothness
from interpret_plugins.priors.total_variation import TotalVariation
from interpret_plugins.synthesis.inpaint import Inpaint
from interpret_plugins.synthesis.langevin import Langevin
from interpret_plugins.synthesis.spatial import Axes, total_variation
from interpret_server.engine.methods import Methods
from interpret_server.plugin import (
    Batch,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Method,
    Plugin,
    Targets,
)
from interpret_server.registry import Registry
from interpret_server.testing import classifier, conformance

SHAPE = (2, 4, 5)
EXAMPLES: list[tuple[type[Plugin[Any, Any]], dict[str, Any]]] = [
    (Gaussian, {}),
    (Gaussian, {"std": 0.3, "weight": 2.0}),
    (TotalVariation, {"weight": 5.0}),
    (Smoothness, {}),
    (Smoothness, {"exponent": 1.7, "weight": 0.5}),
]


def _images(bounds: tuple[float, float] | None = (-1.0, 3.0)) -> Classifier:
    network = nn.Sequential(nn.Flatten(), nn.Linear(40, 3)).double()
    return classifier(network, SHAPE, bounds=bounds, input_layout="CHW")


def _flat() -> Classifier:
    return classifier(nn.Linear(6, 3).double(), (6,), bounds=None)


def _x(model: Classifier, rows: int = 3) -> Tensor:
    return torch.randn(rows, *model.input_shape, dtype=torch.float64)


def _run(
    kind: type[Plugin[Any, Any]],
    model: Classifier,
    x: Tensor,
    models: Mapping[str, Classifier] | None = None,
    **params: object,
) -> PriorResult:
    plugin, made = kind(), kind.params_type.model_validate(params)
    plugin.check(model, made)
    batch = Batch(x, Targets.none(len(x)), tuple(range(len(x))))
    found: PriorResult = plugin.run(model, batch, made, Job(models or {}))
    return found


def _log_prob(result: PriorResult) -> Tensor:
    assert result.log_prob is not None
    return result.log_prob


@pytest.mark.parametrize(("kind", "params"), EXAMPLES, ids=str)
@pytest.mark.parametrize("bounds", [(-1.0, 3.0), None])
def test_score_is_the_gradient_of_the_log_density_by_the_inputs(
    kind: type[Plugin[Any, Any]], params: dict[str, Any], bounds: tuple[float, float] | None
) -> None:
    model = _images(bounds)
    x = _x(model).requires_grad_()
    (expected,) = torch.autograd.grad(_log_prob(_run(kind, model, x, **params)).sum(), x)
    torch.testing.assert_close(_run(kind, model, x.detach(), **params).score, expected)


def test_every_built_in_prior_is_installed() -> None:
    kinds = {item.plugin.name for item in Registry.installed() if item.plugin.kind is Kind.PRIOR}
    names = {"gaussian", "total_variation", "smoothness", "score_model", "log_prob_model"}
    assert names <= kinds


def test_gaussian_density_is_normalised() -> None:
    model = _images()
    x = _x(model)
    expected = Normal(torch.zeros(()).double(), 0.3).log_prob((x - 1) / 4).flatten(1).sum(1)
    torch.testing.assert_close(_log_prob(_run(Gaussian, model, x, std=0.3)), expected)


def test_total_variation_density_is_its_exponent() -> None:
    model = _images()
    x = _x(model)
    expected = -2.0 * total_variation(x / 4, Axes((2, 3), (1,)))
    found = _log_prob(_run(TotalVariation, model, x, weight=2.0))
    torch.testing.assert_close(found, expected)


def test_total_variation_of_flat_vectors_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="needs spatial axes"):
        _run(TotalVariation, _flat(), _x(_flat()))


def _covariance(height: int, width: int, std: float, exponent: float) -> Tensor:
    """Of a stationary field on a torus, by a sum of cosines over its frequencies."""
    power = {}
    for i in range(height):
        for j in range(width):
            f, g = min(i, height - i) / height, min(j, width - j) / width
            power[i, j] = max(math.hypot(f, g), 1 / max(height, width)) ** (-2 * exponent)
    mean = sum(power.values()) / len(power)
    places = [(a, b) for a in range(height) for b in range(width)]
    rows = [
        [
            sum(
                value
                / mean
                / len(power)
                * math.cos(2 * math.pi * (i * (a - c) / height + j * (b - d) / width))
                for (i, j), value in power.items()
            )
            for c, d in places
        ]
        for a, b in places
    ]
    return std**2 * torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.7])
def test_smoothness_is_the_gaussian_field_of_its_spectrum(exponent: float) -> None:
    model = _images()
    x = _x(model)
    covariance = _covariance(4, 5, 0.4, exponent)
    torch.testing.assert_close(covariance.diagonal(), torch.full((20,), 0.16).double())
    field = MultivariateNormal(torch.zeros(20, dtype=torch.float64), covariance)
    expected = field.log_prob(((x - 1) / 4).view(3, 2, 20)).sum(1)
    found = _log_prob(_run(Smoothness, model, x, std=0.4, exponent=exponent))
    torch.testing.assert_close(found, expected)


def test_smoothness_of_flat_vectors_is_the_gaussian_prior() -> None:
    model = _flat()
    x = _x(model)
    found, expected = _run(Smoothness, model, x, std=0.4), _run(Gaussian, model, x, std=0.4)
    torch.testing.assert_close(found.score, expected.score)
    torch.testing.assert_close(found.log_prob, expected.log_prob)


class _Denoiser(nn.Module):
    """The best one for normal values of mean 1 and deviation `spread`, under noise `sigma`."""

    def __init__(self, spread: float, sigma: float) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(spread**2 / (spread**2 + sigma**2)))

    def forward(self, x: Tensor) -> Tensor:
        return 1 + (x - 1) * self.share


class _Density(nn.Module):
    """An unnormalised log density of normal values of mean 1 and deviation 2."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return -((x - self.middle) ** 2).flatten(1).sum(1) / 8


def _values(module: nn.Module, model: Classifier) -> Classifier:
    return classifier(
        module.double(), model.input_shape, bounds=model.bounds, values=True, input_layout="CHW"
    )


def test_a_denoiser_is_the_score_of_the_noisy_density() -> None:
    model = _images()
    x = _x(model)
    prior = {"prior": _values(_Denoiser(2.0, 0.8), model)}
    found = _run(ScoreModel, model, x, prior, sigma=0.2, weight=3.0)
    torch.testing.assert_close(found.score, 3 * (1 - x) / (2.0**2 + 0.8**2), rtol=1e-6, atol=1e-6)
    assert found.log_prob is None
    plain = _run(ScoreModel, model, x, prior, gives="score")
    torch.testing.assert_close(plain.score, prior["prior"](x).view_as(x))


def test_a_density_network_is_a_prior_and_an_energy_is_minus_one() -> None:
    model = _images()
    x = _x(model)
    prior = {"prior": _values(_Density(), model)}
    found = _run(LogProbModel, model, x, prior, weight=2.0)
    torch.testing.assert_close(found.score, (1 - x) / 2)
    torch.testing.assert_close(found.log_prob, -(x - 1).square().flatten(1).sum(1) / 4)
    energy = _run(LogProbModel, model, x, prior, gives="energy")
    torch.testing.assert_close(energy.score, (x - 1) / 4)


def test_networks_of_the_wrong_output_are_refused() -> None:
    model = _images()
    with pytest.raises(InvalidRequest, match="as many values as it takes"):
        _run(ScoreModel, model, _x(model), {"prior": _values(_Density(), model)})
    with pytest.raises(InvalidRequest, match="one number for each row"):
        _run(LogProbModel, model, _x(model), {"prior": _values(_Denoiser(1, 1), model)})
    with pytest.raises(InvalidRequest, match="name a loaded model"):
        _run(ScoreModel, model, _x(model))


def test_priors_add_up() -> None:
    model = _images()
    x = _x(model)
    methods = [
        Method(plugin="gaussian", params={"std": 0.5}),
        Method(plugin="total_variation", params={"weight": 3.0}),
    ]
    found = PriorSum(methods, Job()).at(model, x, (0, 1, 2))
    parts = _run(Gaussian, model, x, std=0.5), _run(TotalVariation, model, x, weight=3.0)
    torch.testing.assert_close(found.score, parts[0].score + parts[1].score)
    torch.testing.assert_close(found.log_prob, _log_prob(parts[0]) + _log_prob(parts[1]))


def test_a_sum_with_a_mere_score_has_no_log_density() -> None:
    model = _images()
    prior = {"prior": _values(_Denoiser(2.0, 0.8), model)}
    methods = [Method(plugin="gaussian"), Method(plugin="score_model")]
    assert PriorSum(methods, Job(prior)).at(model, _x(model), (0, 1, 2)).log_prob is None
    with pytest.raises(InvalidRequest, match="no log density") as caught:
        PriorSum(methods, Job(prior), exact=True)
    assert caught.value.violations[0].field == "params.priors.1"


@pytest.mark.parametrize(
    ("kind", "priors", "options", "field"),
    [
        (Langevin, ["total_variation"], {}, "params.priors"),
        (Langevin, ["gaussian", "score_model"], {"metropolis": True}, "params.priors.1"),
        (Inpaint, ["score_model"], {"metropolis": True}, "params.priors.0"),
        (Langevin, ["gaussian", "log_prob_model"], {}, "models.prior"),
    ],
)
def test_unsuitable_priors_are_refused_before_anything_runs(
    kind: type[Plugin[Any, Any]], priors: list[str], options: dict[str, object], field: str
) -> None:
    model, registry = _images(), Registry()
    for prior in (Gaussian, TotalVariation, ScoreModel, LogProbModel):
        registry.add(prior, "tests")
    plugins = {item.plugin.name: item for item in registry}
    denoiser = _values(_Denoiser(2.0, 0.8), model)
    methods = Methods(model, plugins, frozenset(), {"prior": denoiser})
    params = kind.params_type.model_validate({"priors": priors, **options})
    with pytest.raises(InvalidRequest) as caught:
        methods.resolve(kind(), params)
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize("kind", [Gaussian, TotalVariation, Smoothness, ScoreModel, LogProbModel])
def test_keeps_the_contract(kind: type[Plugin[Any, Any]]) -> None:
    conformance(kind)
