"""Finding text between tags in token space: whatever the vocabulary, and whatever its edges do to the tags."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from openrlhf_ext.errors import DataError
from openrlhf_ext.models.tiny import build_tokenizer
from openrlhf_ext.rewards.spans import TokenBytes, find_between, span_of

OPEN, CLOSE = "<explanation>", "</explanation>"
TEXTS = [f"{OPEN}So x.{CLOSE}", f" >{OPEN}\n\nGrüße 漢字{CLOSE}<|", "a b c 12 <b>é</b> 🙂 ."]


def merging() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary without any rule on what may be merged: its tokens run over every edge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def falling_back() -> PreTrainedTokenizerFast:
    """Pieces with a fallback to bytes, as in Llama 2 and Gemma."""
    letters = sorted(set("".join(TEXTS[:1]) + "▁abc12"))
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokenizer = Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZERS = {"bytes": build_tokenizer(), "merged": build_tokenizer(TEXTS * 5, 400), "over edges": merging(),
              "pieces": falling_back()}  # fmt: skip
READERS = {name: TokenBytes(tokenizer) for name, tokenizer in TOKENIZERS.items()}
PARTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from([OPEN, CLOSE, "<", ">", "</", "explanation", "\n", " ", "é", "漢", "🙂", "e\u0301"]),
)  # fmt: skip
# A piece vocabulary writes a space as this character, so it cannot tell the two apart.
ANSWERS = st.lists(PARTS, max_size=8).map("".join).filter(lambda text: "\u2581" not in text)


def slow(text: str) -> tuple[str, bool]:
    """By the letters of the text alone."""
    _, opening, rest = text.partition(OPEN)
    inside, closing, _ = (rest if opening else text).partition(CLOSE)
    return inside, bool(opening and closing)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=ANSWERS)
def test_the_text_is_found_whole_and_its_tokens_lie_within_it(name: str, text: str):
    tokens = TOKENIZERS[name](text, add_special_tokens=False)["input_ids"]
    check(name, text, tokens)


@settings(max_examples=150, deadline=None)
@given(text=ANSWERS, seed=st.integers(0, 1 << 30))
def test_any_cutting_of_the_bytes_gives_the_same_text(text: str, seed: int):
    """A model may sample tokens that no tokenizer would choose."""
    data, draw, pieces = text.encode(), random.Random(seed), []
    while data:
        size = draw.randint(0, 5)
        pieces.append(data[:size])
        data = data[size:]
    expected, matched = slow(text)
    found = find_between(pieces, OPEN, CLOSE)
    whole = b"".join(pieces[found.span.whole]).decode(errors="replace")
    assert (found.span.before + whole + found.span.after, found.matched) == (expected, matched)


def check(name: str, text: str, tokens: list[int]) -> None:
    reader = READERS[name]
    pieces = [reader.of(token) for token in tokens]
    assert b"".join(pieces) == text.encode(), "tokens stand for the bytes of their text"
    expected, matched = slow(text)
    found = find_between(pieces, OPEN, CLOSE)
    span = found.span
    assert found.matched == matched
    assert span.before + reader.joined(tokens[span.whole]).decode() + span.after == expected
    # As many whole tokens as there are: a neighbour of them sticks out, or half a letter would be left.
    before = b"".join(pieces[: span.start])
    assert text.encode()[: len(before)].endswith(span.before.encode())
    assert len(span.before.encode()) < 4 + max(map(len, pieces), default=0)


def test_a_tag_that_shares_its_tokens():
    pieces = [b"Hi ", b"<expl", b"anation", b">The ", b"sum", b" is ", b"4.</", b"explanation>\n"]
    span = find_between(pieces, OPEN, CLOSE).span
    assert (span.before, pieces[span.whole], span.after) == ("The ", [b"sum", b" is "], "4.")


def test_a_letter_over_several_tokens_stays_whole():
    letter = "漢".encode()
    pieces = [OPEN.encode() + letter[:1], letter[1:2], letter[2:], b"x", letter[:2], letter[2:] + CLOSE.encode()]
    span = find_between(pieces, OPEN, CLOSE).span
    assert (span.before, pieces[span.whole], span.after) == ("漢", [b"x"], "漢")


def test_one_token_that_is_all_of_it():
    span = find_between([f"{OPEN}x{CLOSE}".encode()], OPEN, CLOSE).span
    assert (span.before, span.start, span.stop, span.after) == ("x", span.stop, span.stop, "")


@pytest.mark.parametrize(
    ("text", "inside", "matched"),
    [
        (f"{OPEN}{CLOSE}", "", True),
        (f"a{OPEN}b{CLOSE}c{OPEN}d{CLOSE}", "b", True),
        (f"{OPEN}{OPEN}b{CLOSE}{CLOSE}", f"{OPEN}b", True),
        (f"a{OPEN}b", "b", False),
        (f"a{CLOSE}b", "a", False),
        (f"a{CLOSE}b{OPEN}c", "c", False),
        ("ab", "ab", False),
        ("", "", False),
    ],
)
def test_tags_that_are_missing_or_repeated(text: str, inside: str, matched: bool):
    pieces = [text[i : i + 3].encode() for i in range(0, len(text), 3)]
    found = find_between(pieces, OPEN, CLOSE)
    joined = found.span.before + b"".join(pieces[found.span.whole]).decode() + found.span.after
    assert (joined, found.matched) == (inside, matched)


def test_the_prompt_may_have_opened_the_tag():
    found = find_between([b"a", b"b", b"</", b"explanation>"], OPEN, CLOSE, opened=True)
    assert (found.span.start, found.span.stop, found.matched) == (0, 2, True)
    assert not find_between([b"a"], OPEN, CLOSE, opened=True).matched


def test_bytes_that_are_no_letters():
    letters = [bytes([letter]) for letter in b"abcdefgh"]
    span = span_of([b"<\xff", *letters, b"\xe6>"], 1, 11)
    assert (span.before, span.start, span.stop, span.after) == ("\ufffd", 1, 9, "\ufffd")


def test_words_with_marks_are_refused():
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", "a", "##b"])}
    with pytest.raises(DataError, match="do not stand for bytes"):
        TokenBytes(BertTokenizerFast(vocab=vocabulary))
