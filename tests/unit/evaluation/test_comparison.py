"""Two tables of answers: pairs by content, what is left over, groups, subjects, and the sentence."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from answer_rows import LETTERS, answers, row
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.comparison import compare
from openrlhf_ext.evaluation.sentences import difference_sentence


def test_questions_are_paired_wherever_they_stand() -> None:
    a, b = answers("rrwwrr"), answers("rwrwrr")
    found = compare(a, b[::-1])["rate"]
    assert (found["only_a"], found["only_b"], found["n"]) == (1, 1, 6)
    assert found["a"]["value"] == found["b"]["value"] == pytest.approx(4 / 6)


def test_what_has_no_partner_is_listed() -> None:
    a, b = answers("rrwwf"), [*answers("rrww")[1:], row("q4", "right"), row("q9", "right")]
    found = compare(a, b)
    assert (found["questions"], found["only_a"], found["only_b"], found["unrated"]) == (4, ["q0"], ["q9"], ["q4"])
    assert found["rate"]["n"] == 3


def test_tables_of_other_data_are_refused() -> None:
    with pytest.raises(DataError, match="none of the 2 questions of A is among the 1 of B"):
        compare(answers("rr"), [row("other", "right")])


def test_the_rate_of_what_is_wrong_leaves_unanswered_ones_out_of_it() -> None:
    found = compare(answers("wwuu"), answers("rwuu"), counts="wrong")["rate"]
    assert (found["a"]["value"], found["b"]["value"]) == (0.5, 0.25)


def test_several_answers_are_one_question() -> None:
    """Four equal samples of each question tell as much as one."""
    draw = np.random.default_rng(0)
    drawn = draw.random((2, 40)) < [[0.4], [0.6]]
    tables = [
        [row(f"q{i}", "right" if right else "wrong", sample) for i, right in enumerate(side) for sample in range(4)]
        for side in drawn
    ]
    found = compare(*tables)["rate"]
    single = compare(*([each for each in table if each.sample == 0] for table in tables))["rate"]
    assert found["test"] == "permutation test of pairs"
    assert found["a"] == pytest.approx(single["a"])
    assert found["p"] == pytest.approx(single["p"], abs=0.03)
    assert found["difference"]["low"] == pytest.approx(single["difference"]["low"], abs=0.04)


def test_scores_are_compared_where_they_say_more_than_outcomes() -> None:
    plain = [[replace(each, score=float(each.outcome == "right")) for each in answers(t)] for t in ("rrww", "rwrw")]
    assert compare(*plain)["score"] is None
    graded = [replace(each, score=0.1 * i) for i, each in enumerate(answers("rrwwrrww"))]
    found = compare(graded, [replace(each, score=each.score + 0.5) for each in graded])["score"]
    assert found["difference"] == {"value": pytest.approx(0.5), "low": pytest.approx(0.5), "high": pytest.approx(0.5)}
    assert found["told"]


def test_log_probs_of_references_are_compared_by_token() -> None:
    a = [
        replace(each, reference_logprob=-3.0 * (i + 1), reference_tokens=i + 1) for i, each in enumerate(answers("rw"))
    ]
    b = [
        replace(each, reference_logprob=-1.0 * (i + 1), reference_tokens=i + 1) for i, each in enumerate(answers("rw"))
    ]
    assert compare(a, b)["logprob"]["difference"]["value"] == pytest.approx(2.0)
    assert compare(answers("r"), answers("w"))["logprob"] is None


def of_kinds(kinds: dict[str, tuple[str, str]]) -> tuple[list, list]:
    """For each value of `kind` the outcomes by A and by B."""
    tables: tuple[list, list] = ([], [])
    for kind, both in kinds.items():
        for table, letters in zip(tables, both, strict=True):
            table += [row(f"{kind}{i}", LETTERS[each], columns={"kind": kind}) for i, each in enumerate(letters)]
    return tables


def test_groups_have_holms_correction() -> None:
    kinds = {"x": ("w" * 9 + "r", "r" * 10), "y": ("w" * 7 + "r" * 3, "r" * 10), "z": ("rw", "rw")}
    found = compare(*of_kinds(kinds), groups=("kind",))["groups"]["kind"]
    raw = [mcnemar([[10 - n, 0], [n, 0]], exact=True).pvalue for n in (9, 7)] + [1.0]
    assert [found[kind]["rate"]["p"] for kind in kinds] == pytest.approx(raw)
    holm = multipletests(raw, method="holm")[1]
    assert [found[kind]["rate"]["p_holm"] for kind in kinds] == pytest.approx(list(holm))
    assert [found[kind]["rate"]["told"] for kind in kinds] == [p < 0.05 for p in holm] == [True, True, False]


def test_correction_takes_back_what_one_test_alone_would_say() -> None:
    kinds = {"x": ("wwwwww", "rrrrrr"), **{f"k{i}": ("rw", "rw") for i in range(9)}}
    found = compare(*of_kinds(kinds), groups=("kind",))["groups"]["kind"]["x"]["rate"]
    assert found["p"] == pytest.approx(2 / 2**6)
    assert found["p_holm"] == pytest.approx(20 / 2**6) and not found["told"]


def test_subjects_are_those_of_the_hierarchy() -> None:
    a = [row(f"q{i}", "wrong", columns={"subject": "1.4.2" if i < 6 else "2"}) for i in range(8)]
    b = [replace(each, outcome="right") for each in a]
    found = compare(a, b, subject_column="subject")["subjects"]
    assert [(node["id"], node["rate"]["n"]) for node in found["nodes"]] == [
        ("1", 6), ("1.4", 6), ("1.4.2", 6), ("2", 2),
    ]  # fmt: skip
    assert all("p_holm" in node["rate"] for node in found["nodes"])
    json.dumps(found)


def test_columns_that_differ_are_counted() -> None:
    a = [row("a", "right", columns={"kind": 1}), row("b", "right", columns={"kind": 1})]
    b = [row("a", "right", columns={"kind": 2}), row("b", "right", columns={"kind": 1})]
    assert compare(a, b)["columns_differ"] == 1


def sentence(a: str, b: str, **options: str) -> str:
    return difference_sentence("accuracy", compare(answers(a), answers(b))["rate"], **options)  # type: ignore[arg-type]


def test_a_difference_that_may_be_chance() -> None:
    assert sentence("r" * 6 + "w" * 4, "r" * 4 + "w" * 6) == (
        "accuracy on 10 questions that both have: A 60 % and B 40 %; 20 points less for B (95 % interval -51 to +13 "
        "points; McNemar's exact test, p 0.50): it may be chance; about 37 questions would be needed to tell such a "
        "difference (power 80 %). With 10 questions one of 62 points or more is told."
    )


def test_a_difference_that_is_none_of_chance() -> None:
    told = sentence("w" * 150 + "r" * 150, "w" * 90 + "r" * 210)
    assert told.endswith("McNemar's test, p below 0.001): more than chance, B is better.")
    assert "A 50.0 % and B 70.0 %; 20.0 points more for B" in told
    assert sentence("w" * 150 + "r" * 150, "w" * 90 + "r" * 210, better="low").endswith("B is worse.")


def test_no_difference() -> None:
    assert sentence("rw" * 5, "rw" * 5).endswith(
        "no difference (95 % interval -28 to +28 points). With 10 questions one of 62 points or more is told."
    )
    assert sentence("rw", "rw").endswith("2 questions can tell no difference at all.")


def test_a_difference_of_means_in_words() -> None:
    a = [replace(each, score=0.1 * i) for i, each in enumerate(answers("r" * 12))]
    b = [replace(each, score=each.score + (0.2 if i % 3 else -0.1)) for i, each in enumerate(a)]
    told = difference_sentence("mean score", compare(a, b)["score"], of_rates=False)
    assert told.startswith(
        "mean score on 12 questions that both have: A 0.55 and B 0.65; 0.1 more for B (95 % interval +"
    )
    assert "permutation test of pairs" in told and "points" not in told
    one = difference_sentence("mean score", compare(a[:1], b[:1])["score"], of_rates=False)
    assert one.endswith("of one question nothing can be said.")
