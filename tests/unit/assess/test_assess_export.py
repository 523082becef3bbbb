"""Exported rows: what most raters say, nothing that they dispute, and what our own readers of preferences take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up import FIRST, NO, SECOND, YES, Office, assessment, table

from openrlhf_ext.assess.export import judgement_rows, preference_rows
from openrlhf_ext.assess.opinions import opinions
from openrlhf_ext.assess.verdicts import Choice, Hallucination
from openrlhf_ext.data.preferences import PreferenceSettings, load_preferences
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model


def preferences(office: Office, *, with_references: bool = False):
    return preference_rows(office.assessment, opinions(office.assessment, office.log), with_references=with_references)


@pytest.fixture
def hallucinations(tmp_path: Path) -> Office:
    """Prompts 0 to 4: b is better, a is better, both bad, disputed, not judged."""
    office = Office(tmp_path / "h", assessment([table(FIRST, 5), table(SECOND, 5)], raters=["anna", "ben", "carl"]))
    for rater, first in (("anna", YES), ("ben", YES), ("carl", NO)):
        office.judge(rater, "stage-a says 0", first)
    office.judge("anna", "stage-b says 0", NO)
    office.judge("anna", "stage-a says 1", NO)
    office.judge("anna", "stage-b says 1", YES)
    for name in ("stage-a", "stage-b"):
        office.judge("ben", f"{name} says 2", YES)
    office.judge("anna", "stage-a says 3", YES)
    office.judge("ben", "stage-a says 3", NO)
    office.judge("anna", "stage-b says 3", NO)
    return office


def test_a_clean_answer_is_chosen_over_a_hallucinated_one(hallucinations: Office) -> None:
    found = preferences(hallucinations)
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in found.rows] == [
        ("prompt 0?", "stage-b says 0", "stage-a says 0"),
        ("prompt 1?", "stage-a says 1", "stage-b says 1"),
    ]
    assert found.rows[0]["votes"] == "1 of 1 and 2 of 3"
    assert (found.rows[0]["chosen_model"], found.rows[0]["rejected_model"]) == ("stage-b", "stage-a")
    assert found.left_out == {"unjudged": 2, "disputed": 1, "prompts without one of each": 2}


def test_a_reference_is_chosen_over_a_hallucinated_one(hallucinations: Office) -> None:
    found = preferences(hallucinations, with_references=True)
    own = [(row["chosen"], row["rejected"]) for row in found.rows if row["chosen_model"] == "reference"]
    assert own == [
        ("reference 0", "stage-a says 0"),
        ("reference 2", "stage-a says 2"),
        ("reference 1", "stage-b says 1"),
        ("reference 2", "stage-b says 2"),
    ]


def test_preferences_by_majority(tmp_path: Path) -> None:
    tables = [table(FIRST, 4), table(SECOND, 4)]
    office = Office(tmp_path, assessment(tables, task="preference", raters=["a", "b", "c"]))
    for rater, better in (("a", "stage-b"), ("b", "stage-b"), ("c", "stage-a")):
        office.prefer(rater, f"{better} says 0")
    office.judge("a", "stage-a says 1", Choice("tie"))
    office.prefer("a", "stage-a says 2")
    office.prefer("b", "stage-b says 2")
    found = preferences(office)
    assert [(row["chosen"], row["rejected"], row["votes"]) for row in found.rows] == [
        ("stage-b says 0", "stage-a says 0", "2 of 3")
    ]
    assert found.left_out == {"unjudged": 1, "disputed": 1, "ties": 1}


@pytest.mark.parametrize("with_template", [False, True])
def test_dpo_and_rm_read_the_rows(hallucinations: Office, tmp_path: Path, with_template: bool) -> None:
    rows = preferences(hallucinations, with_references=True).rows
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_tiny_model(tmp_path / "model", TinyShape())
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    settings = PreferenceSettings(str(path), prompt_key="prompt", apply_chat_template=with_template)
    loaded = load_preferences(settings, tokenizer)
    assert loaded.counts["pairs"] == len(rows) == 6
    texts = [tokenizer.decode(pair.chosen_ids, skip_special_tokens=True).strip() for pair in loaded.pairs]
    assert texts == [row["chosen"] for row in rows]


def test_every_judgement_with_its_passages(tmp_path: Path) -> None:
    office = Office(tmp_path, assessment([table(FIRST, 1)]))
    office.judge("anna", "stage-a says 0", NO)
    office.judge(
        "anna", "stage-a says 0", Hallucination(True, "contradiction", ((0, 7), (8, 12))), note="hm", seconds=2
    )
    office.judge("ben", "stage-a says 0", NO)
    anna, ben = judgement_rows(office.assessment, opinions(office.assessment, office.log))
    assert [passage["text"] for passage in anna["passages"]] == ["stage-a", "says"]
    assert anna["passages"][1] == {"start": 8, "end": 12, "text": "says"}
    assert {name: anna[name] for name in ("rater", "kind", "note", "seconds", "model", "fingerprint")} == {
        "rater": "anna", "kind": "contradiction", "note": "hm", "seconds": 2, "model": "stage-a",
        "fingerprint": "aaaa1111",
    }  # fmt: skip
    assert (ben["hallucinated"], ben["passages"]) == (False, [])
