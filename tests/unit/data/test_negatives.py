"""Wrong answers by rule: what a rule changes, that it changes something, and that the seed decides."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.cli.main import dispatch
from openrlhf_ext.data.negatives import (
    KINDS,
    RULES,
    NegativeSettings,
    entity_swap,
    fabricated_finding,
    make_negatives,
    negation,
)
from openrlhf_ext.data.preferences import PreferenceSettings, load_preferences
from openrlhf_ext.errors import DataError

MEDHALLU = Path(__file__).resolve().parents[4] / "shared" / "data" / "medhallu" / "medhallu_part.jsonl"
SEEDS = st.integers(0, 999)
ANSWER = "She was given 500 mg of amoxicillin for pneumonia. The fever was gone in two days."


@given(SEEDS)
def test_entities_and_a_dose_are_swapped_for_others_of_their_kind(seed):
    wrong = entity_swap("An aspirin of 75 mg, then Aspirin again, an hour later.", Random(seed))
    found = re.fullmatch(r"(An?) (\w+) of ([\d.]+) mg, then (\w+) again, an hour later.", wrong)
    article, drug, dose, again = found.groups()
    assert drug in KINDS["drug"] and drug != "aspirin"
    assert again == drug[0].upper() + drug[1:]
    assert (article == "An") == (drug[0] in "aeiou")
    assert float(dose) in (7.5, 37.5, 150, 375, 750)


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("Give 0.0005 mg now.", True),
        ("Give 12.5-mg tablets.", True),
        ("Seen in 1990 by 30 people.", False),
        ("Version 3.5.7 mg", False),
        ("There were 1,000 mg of it.", False),
        ("A heartless act, no cardiacs.", False),
    ],
)
def test_where_a_dose_is_one(text, changes):
    for seed in range(20):
        wrong = entity_swap(text, Random(seed))
        assert (wrong is not None) == changes
        if wrong is not None:
            assert wrong != text and "e-" not in wrong
            assert re.sub(r"[\d.]+", "", wrong) == re.sub(r"[\d.]+", "", text)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("It is not safe.", "It is safe."),
        ("It does not help.", "It does help."),
        ("It cannot be seen.", "It can be seen."),
        ("It wasn't seen.", "It was seen."),
        ("There was no evidence of it.", "There was clear evidence of it."),
        ("There was no significant difference.", "There was a significant difference."),
        ("There were no significant differences.", "There were significant differences."),
        ("There is no association.", "There is an association."),
        ("Without treatment it grows.", "With treatment it grows."),
        ("It was safe.", "It was not safe."),
        ("It can be seen.", "It cannot be seen."),
        ("It is not only safe.", None),
        ("Is it?", None),
        ("Safe, as it was.", None),
        ("Nothing here.", None),
    ],
)
def test_a_negation_goes_or_comes(text, wrong):
    assert negation(text, Random(0)) == wrong


@given(SEEDS)
def test_a_text_with_a_negation_loses_one_and_gets_none(seed):
    text = "It is safe. It is not cheap. It can help. It may not last."
    assert negation(text, Random(seed)) in (text.replace("is not", "is"), text.replace("may not", "may"))


@given(SEEDS)
def test_a_finding_is_added_after_a_sentence(seed):
    wrong = fabricated_finding(ANSWER, Random(seed))
    first, second = ANSWER.split(". ")[0] + ".", ANSWER.split(". ")[1]
    added = wrong.replace(first, "").replace(second, "").strip()
    assert wrong in (f"{first} {added} {second}", f"{first} {second} {added}")
    assert added.endswith(".") and "{" not in added
    assert fabricated_finding("B.", Random(seed)) is None
    assert fabricated_finding("no full stop in all of this", Random(seed)) is None


def rows_of(tmp_path, answers):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"q": f"q{n}", "a": answer}) + "\n" for n, answer in enumerate(answers)))
    return str(path)


def settings_of(path, **settings):
    return NegativeSettings(path, prompt_key="q", chosen_key="a", **settings)


def test_only_changed_rows_are_made_and_counted(tmp_path):
    path = rows_of(tmp_path, [ANSWER, "Yes", "The outcome was better with morphine."])
    made = make_negatives(settings_of(path))
    assert made.counts == {"rows": 3, "unchanged": 1, "entity_swap": 2, "negation": 2, "fabricated_finding": 2}
    assert [(row["prompt"], row["rule"]) for row in made.rows] == [
        (q, rule) for q in ("q0", "q2") for rule in ("entity_swap", "negation", "fabricated_finding")
    ]
    assert all(row["chosen"] != row["rejected"] for row in made.rows)
    one = make_negatives(settings_of(path, one_per_row=True))
    assert [row["prompt"] for row in one.rows] == ["q0", "q2"]
    assert all(row in made.rows for row in one.rows)


def test_the_seed_decides_and_other_rows_do_not(tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    few.mkdir()
    many.mkdir()
    answers = [ANSWER] * 8
    made = make_negatives(settings_of(rows_of(few, answers)))
    again = make_negatives(settings_of(rows_of(many, [*answers, "It is so."])))
    assert made.rows == again.rows[: len(made.rows)]
    assert len({row["rejected"] for row in made.rows}) > len(RULES), "rows of one content are changed each in its way"
    assert make_negatives(settings_of(rows_of(few, answers), seed=1)).rows != made.rows


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["Yes", "No"], "no rule of entity_swap, negation, fabricated_finding could change any of the 2 answers"),
        (["Give 0 mg"], "could change any of the 1 answers"),  # ten times nothing is nothing
        ([["a list"]], "row 1 of rows: column 'a' is list, not text"),
    ],
)
def test_answers_that_cannot_be_changed(tmp_path, answers, said):
    with pytest.raises(DataError, match=said):
        make_negatives(settings_of(rows_of(tmp_path, answers)))


def test_the_command_writes_rows_that_dpo_reads(tmp_path, capsys, tokenizer):
    source, target = rows_of(tmp_path, [ANSWER, "Yes"]), tmp_path / "made" / "negatives.jsonl"
    flags = ["--prompt-key", "q", "--chosen-key", "a", "--rules", "negation", "entity_swap", "--seed", "3"]
    assert dispatch(["negatives", source, str(target), *flags]) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [set(row) for row in rows] == [{"prompt", "chosen", "rejected", "rule"}] * 2
    printed = capsys.readouterr().out
    assert "1 by negation, 1 by entity_swap" in printed and "1 of 2 answers could not be changed" in printed
    assert len(load_preferences(PreferenceSettings(str(target), prompt_key="prompt"), tokenizer).pairs) == 2
    with pytest.raises(DataError, match=r"does not end in \.jsonl"):
        dispatch(["negatives", source, str(tmp_path / "x.csv"), *flags])
    with pytest.raises(DataError, match=r"no column 'prompt' \(--prompt-key\)"):
        dispatch(["negatives", source, str(target)])


@pytest.mark.skipif(not MEDHALLU.is_file(), reason="the rows of MedHallu are not beside this checkout")
def test_real_answers():
    settings = NegativeSettings(str(MEDHALLU), prompt_key="question", chosen_key="ground_truth")
    made = make_negatives(settings)
    assert made.counts["rows"] == 800
    assert made.counts["unchanged"] < 40
    assert min(made.counts[rule] for rule in RULES) > 100
    assert sum(made.counts[rule] for rule in RULES) == len(made.rows)
    assert all(row["chosen"] != row["rejected"] for row in made.rows)
