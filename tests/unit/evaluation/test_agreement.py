"""A judge against labels: the figures by hand, and their intervals by what is known of them."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa as statsmodels_kappa

from openrlhf_ext.evaluation.agreement import (
    agreement,
    as_json,
    cohens_kappa,
    consistency,
    krippendorffs_alpha,
    order_bias,
    pair_order_bias,
    wilson,
)


def labelled(tp: int, fp: int, fn: int, tn: int) -> tuple[list[bool], list[bool]]:
    labels = [True] * tp + [False] * fp + [True] * fn + [False] * tn
    return labels, [True] * tp + [True] * fp + [False] * fn + [False] * tn


def test_the_figures_of_a_table_by_hand() -> None:
    found = agreement(*labelled(40, 10, 20, 30))
    assert (found.true_positives, found.false_positives, found.false_negatives, found.true_negatives) == (
        40,
        10,
        20,
        30,
    )
    assert found.accuracy.value == pytest.approx(0.7)
    assert found.precision.value == pytest.approx(0.8)
    assert found.recall.value == pytest.approx(2 / 3)
    assert found.f1.value == pytest.approx(80 / 110)
    expected = 0.6 * 0.5 + 0.4 * 0.5
    assert found.kappa.value == pytest.approx((0.7 - expected) / (1 - expected))
    assert not found.no_better_than_chance


def test_wilsons_interval_is_where_the_score_test_ends() -> None:
    found = wilson(7, 10)
    z = stats.norm.ppf(0.975)
    for bound in (found.low, found.high):
        assert abs(0.7 - bound) / math.sqrt(bound * (1 - bound) / 10) == pytest.approx(z, abs=1e-6)
    assert math.isnan(wilson(0, 0).value)


def test_kappas_interval_is_near_the_one_for_large_samples() -> None:
    from statsmodels.stats.inter_rater import cohens_kappa

    found = agreement(*labelled(400, 100, 200, 300), resamples=4000)
    known = cohens_kappa([[400, 200], [100, 300]])
    assert found.kappa.value == pytest.approx(known.kappa)
    assert found.kappa.low == pytest.approx(known.kappa_low, abs=0.01)
    assert found.kappa.high == pytest.approx(known.kappa_upp, abs=0.01)


def test_a_judge_by_the_coin_is_said_to_be_no_better_than_chance() -> None:
    """In about 19 of 20 cases, of a coin; never where every verdict is the same; never of a good judge."""
    drawn = np.random.default_rng(1)
    coins = [agreement(*(drawn.random((2, 80)) < 0.5), resamples=400) for _ in range(60)]
    above = sum(not coin.no_better_than_chance for coin in coins)
    assert above <= 6
    assert agreement([True, False] * 20, [True] * 40).no_better_than_chance
    assert agreement([True, False] * 20, [False, True] * 20).no_better_than_chance  # worse than a coin
    assert not agreement([True, False] * 20, [True, False] * 20).no_better_than_chance


def test_rows_that_belong_together_widen_the_interval() -> None:
    """Ten copies of ten verdicts say no more than ten."""
    labels, verdicts = [True, False] * 5, [True, False, True, True, False, False, True, False, True, True]
    alone = agreement(labels, verdicts)
    copied = agreement(labels * 10, verdicts * 10)
    together = agreement(labels * 10, verdicts * 10, clusters=list(range(10)) * 10)
    width = [found.kappa.high - found.kappa.low for found in (alone, copied, together)]
    assert width[1] < 0.5 * width[0]
    assert width[2] == pytest.approx(width[0], rel=0.1)


def test_labels_of_one_kind_are_said() -> None:
    found = agreement([True] * 10, [True] * 9 + [False], rewards=[1.0] * 9 + [0.0])
    assert found.one_kind_of_label and not found.no_better_than_chance
    assert math.isnan(found.kappa.value) and math.isnan(found.auc)
    assert as_json(found)["kappa"] == {"value": None, "low": None, "high": None}


def test_a_graded_reward_is_ranked() -> None:
    found = agreement([True, True, False, False], [True, False, False, False], rewards=[0.9, 0.4, 0.3, 0.1])
    assert found.auc == 1.0
    assert found.recall.value == 0.5


def test_consistency_of_repeats() -> None:
    found = consistency([[True, True, True], [False, False, False], [True, False, True], [False, False, True]])
    assert (found.rows, found.repeats, found.unanimous.value) == (4, 3, 0.5)
    # Fleiss: P of each row 1, 1, 1/3, 1/3; p of each kind 6/12: (2/3 - 1/2) / (1 - 1/2)
    assert found.fleiss_kappa == pytest.approx(1 / 3)
    assert math.isnan(consistency([[True, True]] * 3).fleiss_kappa)


def test_what_order_does() -> None:
    pointwise = order_bias([True, True, False, False], [True, False, True, True])
    assert (pointwise.changed.value, pointwise.first.value) == (0.75, pytest.approx(2 / 3))
    # Whoever is shown first wins: the first of the pair when it is shown first, the second when that is.
    pairs = pair_order_bias([True] * 10, [False] * 10)
    assert (pairs.changed.value, pairs.first.value) == (1.0, 1.0)
    fair = pair_order_bias([True, False, None], [True, False, None])
    assert (fair.changed.value, fair.first.value) == (0.0, 0.5)


def votes(seed: int, n: int, raters: int, words: list, agree: float) -> list[list]:
    """For each of n items what each rater says: mostly the truth."""
    drawn = random.Random(seed)
    return [[truth if drawn.random() < agree else drawn.choice(words) for _ in range(raters)]
            for truth in (drawn.choice(words) for _ in range(n))]  # fmt: skip


def test_kappa_of_three_words_and_its_interval() -> None:
    rows = votes(5, 800, 2, ["a", "b", None], 0.5)
    first, second = zip(*rows)
    kappa = cohens_kappa(first, second, resamples=2000)
    table_of = np.zeros((3, 3))
    for a, b in rows:
        table_of["ab".find(a or "?"), "ab".find(b or "?")] += 1
    known = statsmodels_kappa(table_of)
    assert kappa.value == pytest.approx(known.kappa)
    assert (kappa.low, kappa.high) == (
        pytest.approx(known.kappa_low, abs=0.015), pytest.approx(known.kappa_upp, abs=0.015)
    )  # fmt: skip
    wide = cohens_kappa(first * 4, second * 4, clusters=list(range(800)) * 4, resamples=2000)
    assert wide.value == pytest.approx(kappa.value)
    assert wide.high - wide.low == pytest.approx(kappa.high - kappa.low, rel=0.1)  # four copies are no more evidence


def test_alphas_interval_holds_the_truth_about_19_times_of_20() -> None:
    """Of two raters alpha is about kappa, whose interval for large samples is known."""
    rows = votes(7, 400, 2, [True, False], 0.6)
    alpha = krippendorffs_alpha(rows, resamples=1000)
    counts = np.array([[[sum(a == x and b == y for a, b in rows) for y in (True, False)] for x in (True, False)]])[0]
    known = statsmodels_kappa(counts)
    assert alpha.value == pytest.approx(known.kappa, abs=0.01)
    assert alpha.low == pytest.approx(known.kappa_low, abs=0.02)
    assert alpha.high == pytest.approx(known.kappa_upp, abs=0.02)


@pytest.mark.parametrize("rows", [[], [[True]], [[True, True], [True, True]], [[True], [False]]])
def test_what_tells_nothing_of_agreement(rows: list) -> None:
    assert np.isnan(krippendorffs_alpha(rows, resamples=100).value)
    pairs = [row for row in rows if len(row) == 2]
    assert np.isnan(cohens_kappa([a for a, _ in pairs], [b for _, b in pairs], resamples=100).value)
