"""What is judged: keys are content and model, pairs are of one prompt, and draws keep prompts together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_up import FIRST, SECOND, table

from openrlhf_ext.assess.items import Table, make_items
from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.answers import Answerer


def test_a_key_is_what_is_read_and_the_model() -> None:
    items = make_items("hallucination", [table(FIRST, 3)], most=None, seed=0).items
    same = make_items("hallucination", [Table(FIRST, table(FIRST, 3).rows[::-1])], most=None, seed=9).items
    assert {item.key for item in items} == {item.key for item in same}
    later = Answerer(FIRST.name, "cccc3333")  # the same words of a later stage
    assert not {item.key for item in items} & {
        item.key for item in make_items("hallucination", [table(later, 3)], most=None, seed=0).items
    }
    rows = [replace(row, context="another") for row in table(FIRST, 3).rows]
    moved = make_items("hallucination", [Table(FIRST, rows)], most=None, seed=0).items
    assert not {item.key for item in items} & {item.key for item in moved}


def test_an_answer_given_twice_is_two_items() -> None:
    rows = table(FIRST, 1).rows
    items = make_items("hallucination", [Table(FIRST, [*rows, replace(rows[0], sample=1)])], most=None, seed=0).items
    assert len({item.key for item in items}) == 2
    assert len({item.row for item in items}) == 1


def test_pairs_are_of_one_prompt() -> None:
    second = table(SECOND, 5)
    rows = [replace(row, answer=f" {table(FIRST, 5).rows[i].answer}\n" if i == 2 else row.answer)
            for i, row in enumerate(second.rows)][:4]  # fmt: skip
    made = make_items("preference", [table(FIRST, 5), Table(SECOND, rows[::-1])], most=None, seed=0)
    assert [[each.text for each in item.answers] for item in made.items] == [
        [f"stage-a says {i}", f"stage-b says {i}"] for i in (0, 1, 3)
    ]
    assert made.left_out == {"identical": 1, "unpaired": 1}


def test_a_draw_takes_the_same_prompts_from_both_models() -> None:
    made = make_items("hallucination", [table(FIRST, 30), table(SECOND, 30)], most=12, seed=3).items
    assert len(made) == 12
    rows = [[item.row for item in made if item.answers[0].model == model.fingerprint] for model in (FIRST, SECOND)]
    assert sorted(rows[0]) == sorted(rows[1]) and len(set(rows[0])) == 6
    assert made == make_items("hallucination", [table(FIRST, 30), table(SECOND, 30)], most=12, seed=3).items
    assert made != make_items("hallucination", [table(FIRST, 30), table(SECOND, 30)], most=12, seed=4).items


def test_what_cannot_be_judged() -> None:
    with pytest.raises(DataError, match="the same model"):
        make_items("hallucination", [table(FIRST, 1), table(FIRST, 1)], most=None, seed=0)
    with pytest.raises(DataError, match="between two models, and 1 is given"):
        make_items("preference", [table(FIRST, 1)], most=None, seed=0)
    with pytest.raises(DataError, match=r"nothing to judge \(no rows\)"):
        make_items("hallucination", [table(FIRST, 0)], most=None, seed=0)
    with pytest.raises(DataError, match=r"nothing to judge \(1 unpaired\)"):
        make_items("preference", [table(FIRST, 1), table(SECOND, 0)], most=None, seed=0)
    broken = Table(FIRST, [replace(table(FIRST, 1).rows[0], answer="\ud800")])
    with pytest.raises(DataError, match="surrogate"):
        make_items("hallucination", [broken], most=None, seed=0)
