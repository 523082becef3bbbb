"""Figures against scipy and statsmodels computed apart on the same answers, and against what is known of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from answer_rows import answers, row
from scipy import stats
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.figures import NONE, figures_of, rate, summarise
from openrlhf_ext.evaluation.sentences import outcome_sentence, threshold_sentence


def test_one_answer_to_each_question_has_wilsons_interval() -> None:
    found = figures_of(answers("r" * 6 + "w" * 4))["accuracy"]
    low, high = proportion_confint(6, 10, method="wilson")
    assert found == {"value": 0.6, "low": pytest.approx(low), "high": pytest.approx(high)}


@pytest.mark.parametrize(("hits", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                                                        (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])  # fmt: skip
def test_newcombes_worked_examples(hits: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3 (Wilson's score)."""
    found = figures_of(answers("r" * hits + "w" * (n - hits)))["accuracy"]
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_what_is_no_answer_is_not_right_and_what_failed_counts_nowhere() -> None:
    found = figures_of(answers("rrwutffg"))
    counts = {"right": 2, "wrong": 1, "unanswered": 1, "truncated": 1, "failed": 2, "ungraded": 1}
    assert found["outcomes"] == counts
    assert (found["questions"], found["answers"]) == (8, 8)
    assert found["rated"] == {"questions": 5, "answers": 5}
    assert found["accuracy"]["value"] == pytest.approx(2 / 5)
    for name in ("wrong", "unanswered", "truncated"):
        low, high = proportion_confint(1, 5, method="wilson")
        assert found["rates"][name] == {"value": 0.2, "low": pytest.approx(low), "high": pytest.approx(high)}


def test_samples_that_are_alike_tell_as_much_as_their_questions() -> None:
    alone = figures_of(answers("r" * 6 + "w" * 4))["accuracy"]
    copied = figures_of([row(f"q{i}", "right" if i < 6 else "wrong", sample) for i in range(10) for sample in range(8)])
    assert copied["accuracy"] == pytest.approx(alone)
    assert (copied["questions"], copied["answers"]) == (10, 80)


def test_samples_that_are_independent_tell_as_much_as_answers() -> None:
    drawn = np.random.default_rng(0).random((500, 4)) < 0.3
    rows = [row(f"q{i}", "right" if drawn[i, j] else "wrong", j) for i in range(500) for j in range(4)]
    found = figures_of(rows)["accuracy"]
    low, high = proportion_confint(drawn.sum(), drawn.size, method="wilson")
    assert found["high"] - found["low"] == pytest.approx(high - low, rel=0.1)


def test_the_interval_of_several_samples_covers_the_truth() -> None:
    """Of very different questions: 95 % of the intervals hold the mean; those of as many single answers do not."""
    draw = np.random.default_rng(1)
    held = naive = 0
    for _ in range(400):
        easy = draw.beta(0.5, 0.5, 40)
        hits = draw.binomial(8, easy)
        found = rate(list(hits / 8), 320)
        held += found.low <= 0.5 <= found.high
        low, high = proportion_confint(hits.sum(), 320, method="wilson")
        naive += low <= 0.5 <= high
    assert held > 0.92 * 400
    assert naive < 0.7 * 400


def test_pass_at_k_leaves_out_questions_with_fewer_answers() -> None:
    rows = [row("a", outcome, i) for i, outcome in enumerate(["right", "wrong", "wrong", "wrong"])]
    rows += [row("b", outcome, i) for i, outcome in enumerate(["wrong", "wrong", "failed", "right"])]
    found = figures_of(rows, (1, 2, 4))["pass_at"]
    assert found["1"]["value"] == pytest.approx((1 / 4 + 1 / 3) / 2)
    assert found["2"]["value"] == pytest.approx((1 / 2 + 2 / 3) / 2)  # 1 - C(3,2)/C(4,2), 1 - C(2,2)/C(3,2)
    assert (found["4"]["value"], found["4"]["questions"]) == (1.0, 1)


def test_scores_have_students_interval_over_questions() -> None:
    drawn = np.random.default_rng(2).normal(size=(12, 3))
    rows = [row(f"q{i}", "right", j, score=float(drawn[i, j])) for i in range(12) for j in range(3)]
    found = figures_of(rows)["score"]
    low, high = DescrStatsW(drawn.mean(axis=1)).tconfint_mean()
    assert found == {"value": pytest.approx(drawn.mean()), "low": pytest.approx(low), "high": pytest.approx(high)}
    assert stats.ttest_1samp(drawn.mean(axis=1), found["low"]).pvalue == pytest.approx(0.05)


def test_nothing_to_count_is_null_and_no_zero() -> None:
    found = figures_of(answers("f"))
    assert found["accuracy"] == {"value": None, "low": None, "high": None}
    assert found["score"]["value"] is None
    assert outcome_sentence(found) == "0 of 0: nothing can be told"


def test_groups_by_any_column() -> None:
    rows = [
        row("a", "right", columns={"kind": "x", "of": ["p", "q"]}),
        row("b", "wrong", columns={"kind": 3, "of": []}),
        row("c", "right", columns={"kind": "x"}),
        row("d", "wrong", columns={"kind": None}),
    ]
    found = summarise(rows, groups=("kind", "of", "source"))["groups"]
    assert {name: each["answers"] for name, each in found["kind"].items()} == {"3": 1, "x": 2, NONE: 1}
    assert {name: each["answers"] for name, each in found["of"].items()} == {"p": 1, "q": 1, NONE: 3}
    assert found["source"]["set"]["accuracy"]["value"] == 0.5
    with pytest.raises(DataError, match="no answer has the column 'color': the columns there are kind, of, source"):
        summarise(rows, groups=("color",))


def test_six_of_ten_in_words() -> None:
    assert outcome_sentence(figures_of(answers("r" * 6 + "w" * 4))) == "6 of 10: 60 %, 95 % interval 31 % to 83 %"
    assert (
        outcome_sentence(figures_of(answers("w" * 6 + "ruuu")), "wrong") == "6 of 10: 60 %, 95 % interval 31 % to 83 %"
    )
    rows = [row(f"q{i}", "right" if i < 6 else "wrong", sample) for i in range(10) for sample in range(2)]
    assert outcome_sentence(figures_of(rows)) == ("12 of 20 answers to 10 questions: 60 %, 95 % interval 31 % to 83 %")
    many = outcome_sentence(figures_of(answers("r" * 604 + "w" * 396)))
    assert many == "604 of 1000: 60.4 %, 95 % interval 57.3 % to 63.4 %"


def test_a_rate_against_a_threshold() -> None:
    few, many = (
        figures_of(answers("r" * 6 + "w" * 4))["accuracy"],
        figures_of(answers("r" * 600 + "w" * 400))["accuracy"],
    )
    assert threshold_sentence(few, 0.5, 10) == (
        "60 % is at least 50 %, but 10 rows cannot tell: the interval is 31 % to 83 %"
    )
    assert threshold_sentence(many, 0.5, 1000) == "it is at least 50.0 %: the interval is 56.9 % to 63.0 %"
    assert threshold_sentence(many, 0.5, 1000, at_least=False).startswith("it is not at most 50.0 %")
    assert threshold_sentence(few, 0.15, 10, at_least=False).startswith("it is not at most 15 %")
    assert "cannot be told" in threshold_sentence({"value": None, "low": None, "high": None}, 0.5, 0)


def test_a_certain_rate_has_an_interval_all_the_same() -> None:
    found = figures_of([row(f"q{i}", "right", sample) for i in range(10) for sample in range(5)])["accuracy"]
    low, high = proportion_confint(10, 10, method="wilson")
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
    assert not math.isnan(found["low"])
