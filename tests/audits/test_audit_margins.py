"""Points on a boundary: how far they are moved for the original file to confirm them."""

import numpy as np
import pytest

from interpret_server.audits.calls import Answers
from interpret_server.audits.margins import FACTORS, beyond, is_clear

BOUNDS = (0.0, 1.0)


class Threshold:
    """A file of two classes, the second where an input of one value exceeds a threshold.

    Args:
        threshold: of the input.
        scores: it tells them; else the winner alone.
        height: of the first class's score.
    """

    def __init__(self, threshold, *, scores=True, height=1.0):
        self.threshold, self.scores, self.height = threshold, scores, height
        self.asked = []

    async def __call__(self, rows):
        self.asked.append(rows[:, 0].tolist())
        over = rows[:, 0].astype(np.float64) - self.threshold
        scores = np.stack([np.zeros(len(rows)), over], 1)
        decisions = scores.argmax(1)
        return Answers(
            inputs=rows,
            decisions=decisions,
            scores=scores + self.height if self.scores else None,
            confidences=np.full(len(rows), np.nan),
            served=decisions,
        )


def column(*values):
    return np.array(values, np.float32).reshape(-1, 1)


async def moved(file, inputs, points):
    labels = np.zeros(len(points), np.int64)
    found = await beyond(file, column(*inputs), column(*points), labels, BOUNDS)
    return found[:, 0]


async def test_a_point_with_a_clear_margin_stays_as_it_is():
    file = Threshold(0.5)
    assert await moved(file, [0.25], [0.625]) == [0.625]
    assert file.asked == [[0.625]]


@pytest.mark.parametrize("factor", FACTORS[1:])
async def test_a_point_short_of_the_boundary_goes_beyond_by_the_least_step_that_does(factor):
    smaller = FACTORS[FACTORS.index(factor) - 1]
    threshold = 0.25 + 0.5 * (1 + (factor + smaller) / 2)
    (found,) = await moved(Threshold(threshold, height=0.0), [0.25], [0.75])
    change = (float(found) - 0.25) / 0.5 - 1
    assert change == pytest.approx(factor, rel=0.02)


async def test_a_point_that_is_confirmed_by_a_hair_gives_way_to_a_clear_one():
    (found,) = await moved(Threshold(0.75 - 1e-7), [0.25], [0.75])
    assert 0.75 < found <= 0.25 + 0.5 * (1 + 1e-4)


async def test_the_nearest_confirmed_point_is_kept_where_none_is_clear():
    (found,) = await moved(Threshold(1 - 1e-6), [0.0], [1.0])  # the bounds end there
    assert found == 1.0


async def test_a_point_that_is_never_confirmed_is_returned_as_it_was():
    assert await moved(Threshold(0.9), [0.25], [0.5]) == [0.5]


async def test_points_do_not_leave_the_bounds():
    (found,) = await moved(Threshold(0.9995), [0.0], [0.9992])
    assert 0.9995 < found <= 1.0


async def test_only_what_is_not_clear_is_asked_about_again():
    file = Threshold(0.5)
    found = await moved(file, [0.0, 0.0, 0.0], [0.75, 0.499, 0.25])
    assert [len(rows) for rows in file.asked] == [3, 2, 2, 2, 2]
    assert found[0] == 0.75
    assert found[1] > 0.5
    assert found[2] == 0.25


async def test_without_scores_the_first_point_that_is_confirmed_is_kept():
    file = Threshold(0.75 - 1e-7, scores=False)
    assert await moved(file, [0.25], [0.75]) == [0.75]


async def test_equal_scores_confirm_nothing():
    answers = await Threshold(0.5)(column(0.5))
    labels = np.ones(1, np.int64)  # the first of equal scores is not the label
    assert answers.decisions[0] != labels[0]
    assert not answers.leave(labels)[0]
    assert not is_clear(answers, labels)[0]
