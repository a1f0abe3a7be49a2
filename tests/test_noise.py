"""Noise that depends on a row's seed and a step, and on nothing else."""

import pytest
import torch
from scipy import stats

from interpret_server.noise import generator, mix, normal_rows, uniform_rows
from interpret_server.plugin import Batch, Targets

LIKE = torch.zeros(3, 2, 4)


@pytest.mark.parametrize("draw", [normal_rows, uniform_rows])
def test_a_row_depends_on_its_own_seed_alone(draw):
    together = draw((5, 6, 7), 2, LIKE)
    assert torch.equal(together[1:2], draw((6,), 2, LIKE[:1]))
    assert torch.equal(draw((7, 6, 5), 2, LIKE), together.flip(0))
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("draw", [normal_rows, uniform_rows])
def test_steps_differ_and_repeat(draw):
    assert not torch.equal(draw((5,), 0, LIKE[:1]), draw((5,), 1, LIKE[:1]))
    assert torch.equal(draw((5,), 1, LIKE[:1]), draw((5,), 1, LIKE[:1]))


@pytest.mark.parametrize("draw", [normal_rows, uniform_rows])
def test_the_global_random_state_is_neither_read_nor_changed(draw):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draw((5,), 0, LIKE[:1])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draw((5,), 0, LIKE[:1]), first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_are_rounded_from_the_same_numbers(dtype):
    single = normal_rows((5,), 0, LIKE[:1])
    assert torch.equal(normal_rows((5,), 0, LIKE[:1].to(dtype)), single.to(dtype))


def test_no_rows_give_no_noise():
    assert normal_rows((), 0, LIKE[:0]).shape == (0, 2, 4)
    assert uniform_rows((), 0, LIKE[:0]).shape == (0, 2, 4)


def test_noise_has_the_distribution_that_it_claims():
    like = torch.zeros(1, 5000)
    assert stats.kstest(normal_rows((0,), 0, like)[0].numpy(), "norm").pvalue > 0.001
    assert stats.kstest(uniform_rows((0,), 0, like)[0].numpy(), "uniform").pvalue > 0.001


def test_neighbouring_seeds_and_steps_are_uncorrelated():
    like = torch.zeros(2, 5000)
    first, second = normal_rows((1, 2), 0, like)
    later = normal_rows((1,), 1, like[:1])[0]
    for other in (second, later):
        assert abs(torch.corrcoef(torch.stack([first, other]))[0, 1]) < 0.06


def test_mixing_is_fixed_and_spreads_neighbours():
    assert mix(0, 0) == mix(1 << 64, 0)
    values = {mix(seed, step) for seed in range(200) for step in range(200)}
    assert len(values) == 40_000
    assert all(0 <= value < 1 << 63 for value in values)
    assert mix(1, 0) != mix(0, 1)
    assert generator(3, 4).initial_seed() == mix(3, 4)


def test_the_largest_seed_can_be_used():
    assert normal_rows(((1 << 64) - 1,), 0, LIKE[:1]).isfinite().all()


def test_a_batch_draws_from_its_seeds():
    batch = Batch(LIKE, Targets.none(3), (5, 6, 7))
    assert torch.equal(batch.normal(2), normal_rows((5, 6, 7), 2, LIKE))
    uniform = batch.uniform(-2.0, 3.0, 2)
    assert torch.equal(uniform, uniform_rows((5, 6, 7), 2, LIKE) * 5 - 2)
    assert uniform.min() >= -2
    assert uniform.max() < 3
