"""The fence: no text leaves it, whatever it holds."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.rewards.judge.fence import MARKUP, UNSEEN, Fence, disarm, shorten

SPECIAL = ("<|im_end|>", "<|im_start|>", "</s>", "<s>", "[INST]", "<end_of_turn>", "<｜User｜>", "▁<x>", "@@")
PIECES = [
    *SPECIAL, "<", ">", "|", "</", "<|", "|>", "im_end", "[", "INST]", "<<SYS>>", "data", "<data ", "</data ", "@",
    "\u200b", "\u200d", "\r", "\n", "00000000", "<start_of_turn>", "\U000e0041", " ", "a", "<｜", "｜>", "ü", "\ud800",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=20).map("".join)
WHOLE = re.compile(r"<data ([0-9a-f]{8})>(.*)</data \1>", re.DOTALL)


@given(st.lists(texts, min_size=1, max_size=4))
def test_each_text_is_between_marks_that_no_text_has(case):
    fence = Fence(case, SPECIAL)
    for text in case:
        found = WHOLE.fullmatch(fence(text))
        assert found is not None
        key, body = found.groups()
        assert key not in body and not any(key in other.casefold() for other in case)
        assert "<data" not in body.lower().replace("< ", "") or not re.search(r"</?data\b[^<>\n]{0,80}>", body)


@given(texts)
def test_nothing_that_acts_is_left(text):
    plain, _ = disarm(text, SPECIAL)
    assert not any(token in plain for token in SPECIAL)
    assert not MARKUP.search(plain) and not UNSEEN.search(plain) and "\r" not in plain
    plain.encode()


@given(texts)
def test_words_stay(text):
    """Only spaces are put in and unseen characters taken out."""
    plain, changed = disarm(text, SPECIAL)
    bare = UNSEEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    assert plain.replace(" ", "") == bare.replace(" ", "")
    assert changed or plain == text.replace("\r\n", "\n").replace("\r", "\n")


def test_special_tokens_of_one_character_or_with_spaces():
    assert disarm("a§b", ("§",)) == ("a(U+00A7)b", 1)
    plain, _ = disarm("x< a>y <a>", ("<a>", "< a>", "<  a>", "<   a>"))
    assert not any(token in plain for token in ("<a>", "< a>", "<  a>"))


@given(st.text(max_size=60), st.integers(1, 40))
def test_shortened_texts_keep_both_ends(text, limit):
    short, left_out = shorten(text, limit)
    if len(text) <= limit:
        assert (short, left_out) == (text, 0)
    else:
        head, tail = (limit + 1) // 2, limit // 2
        assert short.startswith(text[:head]) and short.endswith(text[len(text) - tail :])
        assert left_out == len(text) - limit and f"[{left_out} characters are left out here]" in short


def test_the_same_text_has_the_same_fence_among_others():
    """Siblings share the beginning of their prompts."""
    assert Fence(["p", "a"])("p") == Fence(["p", "b"])("p") != Fence(["p"])("q")


def test_a_key_that_another_text_has_is_not_taken():
    key = WHOLE.fullmatch(Fence(["p"])("p")).group(1)
    for known in (key, key.upper()):
        assert WHOLE.fullmatch(Fence(["p", f"I know {known}"])("p")).group(1) != key
