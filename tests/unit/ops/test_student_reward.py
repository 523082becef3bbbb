"""The reward of a teacher's explanation, against numpy and written-out sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from openrlhf_ext.ops.student_reward import REDUCTIONS, RewardTerms, reduced, student_reward

SLOW = {
    "mean": np.mean,
    "min": np.min,
    "max": np.max,
    "median": np.median,
    "quartile1": lambda values: np.percentile(values, 25),
    "quartile3": lambda values: np.percentile(values, 75),
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 101])
def test_a_reduction_is_numpy_s(name: str, count: int):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    assert reduced(values, name) == pytest.approx(float(SLOW[name](values.double().numpy())), abs=1e-12)


def test_every_reduction_has_a_slow_one():
    assert SLOW.keys() == REDUCTIONS.keys()


def test_the_defaults_by_hand():
    solution = torch.tensor([-1.0, -3.0])
    teacher, student = torch.tensor([-0.5, -1.0, -0.25]), torch.tensor([-1.5, -1.0, -2.25])
    reward, parts = student_reward(solution, teacher, student, matched=True, terms=RewardTerms())
    # The divergences are 1, 0 and 2.
    assert reward == pytest.approx((1 * -2 + 0.01 * -3) - (3 * 1 + 0.03 * 2))
    assert parts == pytest.approx(
        {"solution_mean": -2, "solution_min": -3, "divergence_mean": 1, "divergence_max": 2, "match": 0}
    )
    without, parts = student_reward(solution, teacher, student, matched=False, terms=RewardTerms())
    assert without == pytest.approx(reward - 1)
    assert parts["match"] == -1


def test_an_empty_explanation_diverges_from_nothing():
    none = torch.zeros(0)
    reward, parts = student_reward(torch.tensor([-2.0]), none, none, matched=True, terms=RewardTerms())
    assert reward == pytest.approx(-2.02)
    assert parts["divergence_mean"] == parts["divergence_max"] == 0.0


def test_weights_are_free():
    terms = RewardTerms(solution=(("quartile1", 2.0),), divergence=(("median", 0.5), ("min", -1.0)), missing=-7.0)
    solution, student = torch.tensor([-4.0, -2.0, -1.0]), torch.tensor([-1.0, -5.0])
    reward, parts = student_reward(solution, torch.zeros(2), student, matched=False, terms=terms)
    assert reward == pytest.approx(2 * -3 - (0.5 * 3 - 1.0 * 1) - 7)
    assert parts.keys() == {"solution_quartile1", "divergence_median", "divergence_min", "match"}


def test_what_is_not_finite_is_not_hidden():
    reward, _ = student_reward(torch.tensor([math.nan]), torch.zeros(1), torch.zeros(1), matched=True,
                               terms=RewardTerms())  # fmt: skip
    assert math.isnan(reward)
