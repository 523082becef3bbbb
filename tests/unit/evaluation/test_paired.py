"""Paired differences: published worked examples, statsmodels and scipy computed apart, and what simulation says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestPower

from openrlhf_ext.evaluation.paired import (
    detectable_mean,
    detectable_rate,
    difference_of_means,
    difference_of_rates,
    means_needed,
    pairs_needed,
    tango,
)


def outcomes(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    return a, [True] * both + [False] * only_a + [True] * only_b + [False] * neither


@pytest.mark.parametrize(
    ("more", "less", "n", "low", "high"),
    [
        # Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33, 2850-2875: airway hyper-responsiveness.
        (1, 7, 21, -0.517, -0.026),
        # R's PropCIs, the example of scoreci.mp.
        (40, 20, 160, 0.0309, 0.2181),
    ],
)
def test_tangos_published_intervals(more: int, less: int, n: int, low: float, high: float) -> None:
    found = tango(more, less, n)
    assert found == (pytest.approx(low, abs=6e-4), pytest.approx(high, abs=6e-4))
    assert tango(less, more, n) == (pytest.approx(-found[1]), pytest.approx(-found[0]))


@given(n=st.integers(1, 80), data=st.data())
def test_tangos_interval_leaves_out_0_where_mcnemars_test_does(n: int, data: st.DataObject) -> None:
    more = data.draw(st.integers(0, n))
    less = data.draw(st.integers(0, n - more))
    low, high = tango(more, less, n)
    assert -1 <= low <= (more - less) / n + 1e-9
    assert (more - less) / n - 1e-9 <= high <= 1
    if more + less:
        p = mcnemar([[0, less], [more, n - more - less]], exact=False, correction=False).pvalue
        assert (p < 0.05) == (low > 0 or high < 0)
    else:
        assert low == pytest.approx(-high)


def test_tangos_interval_covers_the_truth() -> None:
    draw = np.random.default_rng(3)
    held = 0
    for _ in range(600):
        _, only_a, only_b, _ = draw.multinomial(40, [0.4, 0.1, 0.25, 0.25])
        low, high = tango(int(only_b), int(only_a), 40)
        held += low <= 0.15 <= high
    assert 0.92 * 600 < held < 0.985 * 600


def test_few_discordant_questions_have_the_exact_test() -> None:
    found = difference_of_rates(*outcomes(50, 3, 11, 36))
    assert found.p == pytest.approx(stats.binomtest(3, 14).pvalue)
    assert found.test == "McNemar's exact test"
    assert (found.a, found.b, found.difference.value) == (0.53, 0.61, pytest.approx(0.08))
    assert (found.only_a, found.only_b) == (3, 11)


def test_many_have_the_chi_squared_one() -> None:
    found = difference_of_rates(*outcomes(300, 40, 71, 89))
    assert found.p == pytest.approx(stats.chi2.sf((40 - 71) ** 2 / 111, 1))
    assert found.difference.low > 0


def test_answers_that_are_alike() -> None:
    found = difference_of_rates(*outcomes(6, 0, 0, 4))
    assert (found.difference.value, found.p, found.needed) == (0.0, 1.0, None)
    assert found.difference.low == pytest.approx(-found.difference.high)


def test_means_are_those_of_scipy() -> None:
    draw = np.random.default_rng(4)
    a = draw.normal(size=60)
    b = a + draw.normal(0.3, 0.5, 60)
    found = difference_of_means(a, b, seed=1)
    apart = stats.bootstrap((b - a,), np.mean, n_resamples=20000, rng=np.random.default_rng(9)).confidence_interval
    assert found.difference.value == pytest.approx((b - a).mean())
    assert found.difference.low == pytest.approx(apart.low, abs=0.01)
    assert found.difference.high == pytest.approx(apart.high, abs=0.01)
    assert found.p == pytest.approx(stats.ttest_rel(b, a).pvalue, abs=2e-3)


def test_pairing_tells_what_two_samples_could_not() -> None:
    draw = np.random.default_rng(5)
    a = draw.normal(0, 5, 50)
    b = a + draw.normal(0.5, 0.3, 50)
    assert difference_of_means(a, b).p < 0.001
    assert stats.ttest_ind(a, b).pvalue > 0.5


def test_few_means_have_every_permutation() -> None:
    found = difference_of_means([0, 0, 0, 0], [1, 2, 3, 4])
    assert found.p == pytest.approx(2 / 2**4)


def test_many_means_are_told_quickly_and_alike() -> None:
    draw = np.random.default_rng(6)
    a, b = draw.random(5000), draw.random(5000)
    found = difference_of_means(a, b)
    assert found.test == "paired t test"
    half = 1.96 * (b - a).std(ddof=1) / math.sqrt(5000)
    assert found.difference.high - found.difference.low == pytest.approx(2 * half, rel=0.05)


def test_one_question_tells_nothing() -> None:
    found = difference_of_means([0.2], [0.9])
    assert math.isnan(found.p) and math.isnan(found.difference.low) and found.needed is None


def test_connors_number_has_its_power() -> None:
    """McNemar's test of so many pairs finds the difference in 80 % of trials."""
    n = pairs_needed(0.3, 0.1)
    assert n == 234
    draw = np.random.default_rng(7)
    only_a, only_b, _ = draw.multinomial(n, [0.1, 0.2, 0.7], size=4000).T
    told = stats.chi2.sf((only_b - only_a) ** 2 / (only_a + only_b), 1) < 0.05
    assert told.mean() == pytest.approx(0.8, abs=0.02)
    assert pairs_needed(0.3, 0.0) is None


def test_what_n_pairs_tell() -> None:
    assert detectable_rate(0.3, 234) == pytest.approx(0.1, abs=0.001)
    assert detectable_rate(0.0, 3) is None
    assert detectable_rate(0.0, 20) == pytest.approx(detectable_rate(0.1, 20))  # a difference is discordant itself
    sizes = [detectable_rate(0.3, n) for n in (10, 100, 1000, 100000)]
    assert sizes == sorted(sizes, reverse=True)


def test_means_needed_and_detectable_are_each_others_answers() -> None:
    n = means_needed(0.5, 1.0)
    assert n == math.ceil(TTestPower().solve_power(effect_size=0.5, alpha=0.05, power=0.8)) == 34
    assert detectable_mean(1.0, 34) == pytest.approx(0.495, abs=0.001)
    assert means_needed(1e-5, 1.0) == pytest.approx(7.849e10, rel=1e-3)
    assert means_needed(9.0, 1.0) == means_needed(1.0, 1e-16) == 3
    assert means_needed(1.0, 0.0) == 2
    assert means_needed(0.0, 1.0) is None
    assert detectable_mean(1.0, 2) is None
