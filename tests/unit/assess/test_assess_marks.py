"""Passages by words: what the caret begins and ends is marked, whatever was marked before."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.assess.marks import Marks
from openrlhf_ext.assess.verdicts import Hallucination

TEXT = "One two. Three four five!\nSix 🙂 seven 漢字"


def marked(marks: Marks, text: str = TEXT) -> list[str]:
    return [text[start:end] for start, end in marks.spans]


def test_a_passage_of_words() -> None:
    marks = Marks(TEXT)
    assert marks.caret is None
    marks.enter()
    marks.move(2)
    marks.begin_or_end()
    marks.move(1)
    assert TEXT[slice(*marks.choosing)] == "Three four"
    marks.begin_or_end()
    assert marked(marks) == ["Three four"] and marks.choosing is None
    marks.sentence(1)
    assert TEXT[slice(*marks.caret)] == "Six"
    marks.move(1)
    assert TEXT[slice(*marks.caret)] == "🙂"
    marks.sentence(-1)
    marks.sentence(-1)
    assert TEXT[slice(*marks.caret)] == "Three"
    marks.remove()
    assert marked(marks) == []
    marks.move(99)
    marks.begin_or_end()
    marks.move(-1)
    marks.finish()
    assert marked(marks) == ["漢字"]


def test_marks_that_touch_become_one() -> None:
    marks = Marks(TEXT, [(0, 3), (9, 14)])
    marks.enter()
    marks.begin_or_end()
    marks.move(2)
    marks.begin_or_end()
    assert marked(marks) == ["One two. Three"]


@given(st.text(alphabet="ab .!\n漢", max_size=30), st.lists(st.integers(-3, 6), max_size=20))
def test_whatever_is_pressed_makes_passages_that_can_be(text: str, acts: list[int]) -> None:
    marks = Marks(text)
    marks.enter()
    for act in acts if marks.active else ():
        if act in (4, 5):
            marks.begin_or_end()
        elif act == 6:
            marks.remove()
        else:
            random.choice([marks.move, marks.sentence])(act or 1)
    marks.finish()
    Hallucination(True, "fabricated", tuple(marks.spans))
    assert all(0 <= start < end <= len(text) for start, end in marks.spans)
