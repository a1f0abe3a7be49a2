"""Priors: densities in closed form, scores as gradients of the log densities."""

import pytest
import torch
from torch.distributions import Normal

from interpret_plugins import priors
from interpret_plugins.priors import PRIORS, Gaussian, Prior, TotalVariation
from interpret_plugins.synthesis.spatial import Axes, total_variation

IMAGE = Axes((2, 3), (1,))
EXAMPLES = [Gaussian(), Gaussian(std=0.3, weight=2.0), TotalVariation(), TotalVariation(weight=5.0)]


@pytest.mark.parametrize("prior", EXAMPLES, ids=str)
def test_score_is_the_gradient_of_the_log_density(prior: Prior) -> None:
    z = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(prior.log_prob(z, IMAGE).sum(), z)
    torch.testing.assert_close(prior.score(z.detach(), IMAGE), expected)


def test_every_registered_prior_is_tried() -> None:
    assert {type(prior) for prior in EXAMPLES} == set(PRIORS.values())
    assert {name: kind().name for name, kind in PRIORS.items()} == {name: name for name in PRIORS}


def test_gaussian_density_is_normalised() -> None:
    z = torch.randn(3, 6, dtype=torch.float64)
    expected = Normal(0.0, 0.3).log_prob(z).sum(1)
    torch.testing.assert_close(Gaussian(std=0.3).log_prob(z, Axes((), ())), expected)


def test_total_variation_density_is_its_exponent() -> None:
    z = torch.randn(3, 2, 4, 5)
    expected = -2.0 * total_variation(z, IMAGE)
    torch.testing.assert_close(TotalVariation(weight=2.0).log_prob(z, IMAGE), expected)


def test_priors_add_up() -> None:
    z = torch.randn(3, 2, 4, 5)
    both = [Gaussian(std=0.5), TotalVariation(weight=3.0)]
    torch.testing.assert_close(
        priors.log_prob(both, z, IMAGE), both[0].log_prob(z, IMAGE) + both[1].log_prob(z, IMAGE)
    )
    torch.testing.assert_close(
        priors.score(both, z, IMAGE), both[0].score(z, IMAGE) + both[1].score(z, IMAGE)
    )
