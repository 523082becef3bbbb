"""A letter is an answer only where it plainly is one."""

from __future__ import annotations

import pytest

from openrlhf_ext.evaluation.letters import letter_of, lettered

PLAIN = {
    "B": "B", "(B)": "B", "B.": "B", "b) aspirin": "B", "**B**": "B", "B. Aspirin": "B", "B\nbecause of": "B",
    "A - Aspirin": "A", "A: aspirin": "A", "A, because it is": "A", "D) Not enough information": "D", "B) False": "B",
    "Answer: B": "B", "Answer:\n\nD": "D", "Answer: A. Aspirin": "A", "Final answer: **D**": "D",
    "The answer is B because it is": "B", "The correct answer is A because it is": "A", "The answer is clearly B!": "B",
    "The answer is (A) Aspirin": "A", "The answer is A) Aspirin": "A", "The best option is (b).": "B",
    "Option A is correct.": "A", "(C) is the correct answer": "C", r"so \boxed{D}": "D", r"\boxed{\text{D}}": "D",
    "The answer is A. Wait, the answer is B.": "B",  # the last word counts
    "A patient. The answer is C.": "C",
    "B is wrong. The answer is C": "C",
    "A) incorrect. B) incorrect. Answer: D": "D",
    "The answer is C, since option B is unlikely": "C",
}  # fmt: skip

NONE = [
    "", "  \n", "Abdomen", "Z", "I think D", "A is for apple", "A's",
    "A patient with fever has B symptoms", "a patient", "Answer: A patient", "The answer is a patient with B",
    "B12 deficiency", "The answer is B12", "C-reactive protein", "the answer is vitamin C",
    "E. coli is it", "the answer is E. coli", "Answer: C. difficile", "A. fumigatus",
    "A or B", "A, B and C", "A and B", "A/B", "The answer is A or C.",
    "The answer is not B", "the answer isn't B", "The incorrect answer is A.", "The answer B is wrong",
    "It is B that everybody expects here", "vitamins A, B, C and D are",
]  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_a_letter_that_is_plainly_the_answer(text: str) -> None:
    assert lettered(text) == PLAIN[text]


@pytest.mark.parametrize("text", NONE)
def test_no_letter_is_plainly_the_answer(text: str) -> None:
    assert lettered(text) is None


def test_other_letters_are_words() -> None:
    assert lettered("J") is None
    assert lettered("J", "ABCDEFGHIJ") == "J"
    assert lettered("I, for one, think so", "ABCDEFGHIJ") == "I"  # why I is no letter unless it is asked for
    assert lettered("E", "ABCD") is None


def test_labels() -> None:
    assert [letter_of(label) for label in ("B", " b ", "(B)", "B.")] == ["B"] * 4
    for label in ("aspirin", "AB", "", "Z"):
        with pytest.raises(ValueError, match="none of the letters"):
            letter_of(label)


@pytest.mark.timeout(10)
def test_a_long_text_takes_no_time() -> None:
    assert lettered(("the answer is " * 3000) + "(((" * 3000) is None
    assert lettered(" " * 50_000 + "x") is None
