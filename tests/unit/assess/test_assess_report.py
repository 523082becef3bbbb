"""The figures of a report against the libraries', computed apart from the raters' answers."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from made_up import FIRST, NO, SECOND, YES, Office, assessment, table
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.proportion import proportion_confint

from openrlhf_ext.assess.items import Table
from openrlhf_ext.assess.opinions import opinions
from openrlhf_ext.assess.report import questions_needed, report
from openrlhf_ext.assess.verdicts import Choice, Hallucination
from openrlhf_ext.evaluation.agreement import wilson
from openrlhf_ext.evaluation.answers import Answerer


def found(office: Office, **asked):
    asked = {"at_most": 0.15, "resamples": 500, "seed": 0, **asked}
    value = report(office.assessment, opinions(office.assessment, office.log), **asked)
    json.dumps(value, allow_nan=False)
    return value


def test_six_of_ten_are_31_to_83_per_cent(tmp_path: Path) -> None:
    office = Office(tmp_path, assessment([table(FIRST, 10)], raters=["anna"]))
    for i in range(10):
        said = Hallucination(True, "fabricated" if i < 4 else "contradiction") if i < 6 else NO
        office.judge("anna", f"stage-a says {i}", said, seconds=i)
    (model,) = found(office)["models"]
    assert model["sentence"] == "6 of 10: 60 %, 95 % interval 31 % to 83 %"
    low, high = proportion_confint(6, 10, method="wilson")
    assert (model["rate"]["low"], model["rate"]["high"]) == (pytest.approx(low), pytest.approx(high))
    assert {kind: of["n"] for kind, of in model["kinds"].items()} == {
        "fabricated": 4, "wrong_inference": 0, "contradiction": 2, "unsupported_detail": 0
    }  # fmt: skip
    assert model["claim"]["standing"] == "refuted"
    assert found(office, at_most=0.9)["models"][0]["claim"]["standing"] == "shown"
    open_claim = found(office, at_most=0.7)["models"][0]["claim"]
    assert open_claim["standing"] == "open"
    assert f"about {open_claim['questions_needed']} questions would tell" in open_claim["sentence"]


@pytest.mark.parametrize(("part", "threshold"), [(0.1, 0.15), (0.2, 0.15), (0.0, 0.15), (0.6, 0.7)])
def test_the_number_that_would_tell_is_the_first_one_that_does(part: float, threshold: float) -> None:
    n = questions_needed(part, threshold)

    def tells(size: int) -> bool:
        low, high = proportion_confint(part * size, size, method="wilson")
        return not low < threshold < high

    assert n is not None
    assert tells(n) and not tells(n - 1)
    assert questions_needed(threshold, threshold) is None


def votes(seed: int, n: int, raters: int, words: list, agree: float) -> list[list]:
    """For each of n items what each rater says: mostly the truth."""
    drawn = random.Random(seed)
    return [[truth if drawn.random() < agree else drawn.choice(words) for _ in range(raters)]
            for truth in (drawn.choice(words) for _ in range(n))]  # fmt: skip


def test_raters_agree_as_the_libraries_say(tmp_path: Path) -> None:
    raters = ["anna", "ben", "carl"]
    office = Office(tmp_path, assessment([table(FIRST, 40)], raters=raters, overlap=25))
    said: dict[str, dict[str, bool]] = {}
    shared = set(office.assessment.shared())
    for (key, item), row in zip(office.assessment.by_key.items(), votes(3, 40, 3, [True, False], 0.6)):
        for rater, word in zip(raters, row):
            if key in office.assessment.order(rater):
                office.judge(rater, item.answers[0].text, YES if word else NO)
                said.setdefault(key, {})[rater] = word
    value = found(office)
    assert value["judgements"] == 3 * 25 + 15
    agree = value["agreement"]
    assert agree["items"] == len(shared) == 25
    for pair in agree["pairs"]:
        mine, theirs = ([said[key][rater] for key in shared] for rater in pair["raters"])
        assert pair["kappa"]["value"] == pytest.approx(cohen_kappa_score(mine, theirs))
        assert pair["same"]["value"] == pytest.approx(np.mean(np.array(mine) == np.array(theirs)))
    data = [[said[key].get(rater, np.nan) for key in said] for rater in raters]
    assert agree["alpha"]["value"] == pytest.approx(krippendorff.alpha(data, level_of_measurement="nominal"))
    assert agree["alpha"]["low"] < agree["alpha"]["value"] < agree["alpha"]["high"]
    settled = [sum(row.values()) * 2 > len(row) for row in said.values() if sum(row.values()) * 2 != len(row)]
    (model,) = value["models"]
    assert (model["judged"], model["hallucinated"]) == (len(settled), sum(settled))
    assert value["disputed"] == len(said) - len(settled)


def test_the_judge_beside_the_people(tmp_path: Path) -> None:
    people = [i % 3 == 0 for i in range(20)]  # hallucinated
    judge = ["wrong" if bad != (i % 7 == 0) else "right" for i, bad in enumerate(people)]
    judge[19] = "truncated"
    office = Office(tmp_path, assessment([table(FIRST, 20, outcomes=judge)], raters=["anna"]))
    for i, bad in enumerate(people):
        office.judge("anna", f"stage-a says {i}", YES if bad else NO)
    (told,) = found(office)["judge"]
    assert (told["items"], told["no_verdict"]) == (19, 1)
    expected = cohen_kappa_score([not bad for bad in people[:19]], [word == "right" for word in judge[:19]])
    assert told["kappa"]["value"] == pytest.approx(expected)
    assert told["accuracy"]["value"] == pytest.approx(16 / 19)
    plain = Office(tmp_path / "plain", assessment([table(FIRST, 2)], raters=["anna"]))
    plain.judge("anna", "stage-a says 0", NO)
    assert found(plain)["judge"] == []


def test_a_judge_that_has_said_nothing_of_what_was_judged(tmp_path: Path) -> None:
    office = Office(tmp_path, assessment([table(FIRST, 2, outcomes=["failed", "right"])], raters=["anna"]))
    office.judge("anna", "stage-a says 0", NO)
    (told,) = found(office)["judge"]
    assert (told["items"], told["no_verdict"], told["kappa"]["value"]) == (0, 1, None)


def test_two_models_are_told_apart(tmp_path: Path) -> None:
    office = Office(tmp_path, assessment([table(FIRST, 8), table(SECOND, 8)], raters=["anna"]))
    for i in range(8):
        office.judge("anna", f"stage-a says {i}", YES if i < 6 else NO)
        office.judge("anna", f"stage-b says {i}", YES if i < 1 else NO)
    value = found(office)
    assert {model["name"]: model["hallucinated"] for model in value["models"]} == {"stage-a": 6, "stage-b": 1}
    difference = value["difference"]
    assert difference["p"] == pytest.approx(stats.binomtest(5, 5).pvalue)  # McNemar's: b is better in 5 of 5
    assert (difference["n"], difference["difference"]["value"]) == (8, pytest.approx(-5 / 8))
    assert "on 8 questions that both have: A 75 % and B 12 %; 62 points less for B" in difference["sentence"]


def test_who_wins(tmp_path: Path) -> None:
    scores = ([0.5] * 12, [1.0] * 9 + [0.5, 0.0, 0.0])
    tables = [table(model, 12, scores=own) for model, own in zip((FIRST, SECOND), scores)]
    office = Office(tmp_path, assessment(tables, task="preference", raters=["anna"]))
    for i in range(12):
        if i == 11:
            office.judge("anna", "stage-a says 11", Choice("tie"))
        else:
            office.prefer("anna", f"stage-b says {i}" if i < 9 else f"stage-a says {i}")
    value = found(office)
    preference = value["preference"]
    assert (preference["second"]["wins"], preference["first"]["wins"], preference["ties"]) == (9, 2, 1)
    assert preference["win_rate"]["low"] == pytest.approx(wilson(9, 11).low)
    assert preference["sign_test_p"] == pytest.approx(stats.binomtest(9, 11).pvalue)
    firsts = [office.desks["anna"].sheet(key) for key in office.desks["anna"].keys]
    won = sum(
        office.desks["anna"].judged[sheet.key].said.side == "A" for sheet in firsts
    )  # fmt: skip
    assert preference["shown_first_won"]["value"] == pytest.approx(won / 11)
    (score,) = value["judge"]
    assert score["accuracy"]["value"] == pytest.approx(10 / 12)  # all but item 9 (a tie by score) and 11
    assert value["models"] is None


def test_several_pairs_of_one_prompt_are_no_more_evidence(tmp_path: Path) -> None:
    def copied(model: Answerer) -> Table:
        rows = [replace(row, sample=sample) for row in table(model, 4).rows for sample in range(5)]
        return Table(model, rows)

    office = Office(tmp_path, assessment([copied(FIRST), copied(SECOND)], task="preference", raters=["anna"]))
    desk = office.desks["anna"]
    for key in desk.keys:
        answers = desk.sheet(key).answers
        better = "stage-b" if answers[0][-1] in "012" else "stage-a"
        desk.judge(key, Choice("A" if answers[0].startswith(better) else "B"))
    preference = found(office)["preference"]
    assert (preference["second"]["wins"], preference["first"]["wins"]) == (15, 5)
    assert preference["win_rate"]["low"] == pytest.approx(wilson(3, 4).low)
    assert preference["sign_test_p"] == pytest.approx(stats.binomtest(3, 4).pvalue)
    assert preference["sentence"].startswith("15 of 20 answers to 4 questions: 75 %")


def test_a_report_of_nothing(tmp_path: Path) -> None:
    for task, tables in (("hallucination", [table(FIRST, 2)]), ("preference", [table(FIRST, 2), table(SECOND, 2)])):
        value = found(Office(tmp_path / task, assessment(tables, task=task)))
        assert (value["judgements"], value["unjudged"]) == (0, 2)
