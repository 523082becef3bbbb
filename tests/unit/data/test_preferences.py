"""Rows to preference pairs: one prompt, two answers, what is cut and what is left out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.data.dropped import DroppedRow, write_dropped
from openrlhf_ext.data.preferences import PreferenceSettings, load_preferences
from openrlhf_ext.errors import ConfigError, DataError

HH = Path(__file__).resolve().parents[4] / "shared" / "data" / "hh-rlhf" / "harmless-base_part.jsonl"
START = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Bye\n\nAssistant:"
ASKED = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]
COLUMNS = {"prompt_key": "p", "chosen_key": "c", "rejected_key": "r"}


def said(content, role="assistant"):
    return {"role": role, "content": content}


def load(tokenizer, path, **settings):
    return load_preferences(PreferenceSettings(path, **settings), tokenizer)


def one(tokenizer, path, **settings):
    loaded = load(tokenizer, path, **settings)
    assert loaded.counts["pairs"] == len(loaded.pairs) == 1
    return loaded.pairs[0]


def texts(tokenizer, pair):
    return tuple(tokenizer.decode(ids) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))


def test_dialogues_are_split_at_the_last_turn(tokenizer, jsonl):
    path = jsonl([{"chosen": START + " See you.", "rejected": START + " No.\n"}])
    pair = one(tokenizer, path)
    assert texts(tokenizer, pair) == (START, " See you.<|im_end|>", " No.<|im_end|>")
    rendered = one(tokenizer, path, apply_chat_template=True)
    asked = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert texts(tokenizer, rendered) == (asked, "See you.<|im_end|>", "No.<|im_end|>")


def test_every_form_of_a_row_gives_the_same_pair(tokenizer, jsonl):
    whole = {"chosen": [*ASKED, said("See you.")], "rejected": [*ASKED, said("No.")]}
    want = one(tokenizer, jsonl([whole]), apply_chat_template=True)
    for row in (
        {"p": ASKED, "c": "See you.", "r": "No."},
        {"p": ASKED, "c": [said("See you.")], "r": said("No.")},
        {"p": ASKED, "c": whole["chosen"], "r": whole["rejected"]},
        {"p": START, "c": " See you.", "r": " No."},
        {"p": START + "\n", "c": "See you.", "r": [said("No.")]},
    ):
        got = one(tokenizer, jsonl([row]), **COLUMNS, apply_chat_template=True)
        assert {**asdict(got), "id": 0} == {**asdict(want), "id": 0}
    prompt = {"p": "Bye", "c": "See you.", "r": "No."}
    asked = one(tokenizer, jsonl([prompt]), **COLUMNS, apply_chat_template=True)
    assert texts(tokenizer, asked)[0] == "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    plain = one(tokenizer, jsonl([prompt]), **COLUMNS, input_template="Q: {}\nA: ")
    assert texts(tokenizer, plain) == ("Q: Bye\nA: ", "See you.<|im_end|>", "No.<|im_end|>")


@pytest.mark.parametrize("ending", ["", "\n", "<|im_end|>", "<|im_end|>\n", "<|im_end|> "])
def test_one_eos_at_the_end_of_each_answer(tokenizer, jsonl, ending):
    pair = one(tokenizer, jsonl([{"p": "x", "c": "yes" + ending, "r": "no"}]), **COLUMNS)
    assert texts(tokenizer, pair) == ("x", "yes<|im_end|>", "no<|im_end|>")


def test_a_generation_prompt_that_an_answer_does_not_continue(make_tokenizer, jsonl):
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    )
    row = {"p": "x", "c": "<think>hm</think>yes", "r": "no"}
    pair = one(make_tokenizer(chat_template=template), jsonl([row]), **COLUMNS, apply_chat_template=True)
    assert texts(make_tokenizer(), pair) == (
        "<user>x<|im_end|>\n<assistant>",
        "<think>hm</think>yes<|im_end|>",
        "no<|im_end|>",
    )


def test_a_template_that_rewrites_the_prompt_is_named(make_tokenizer, jsonl):
    template = "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="renders the prompt of row 1 of rows otherwise once an answer follows"):
        load(
            make_tokenizer(chat_template=template),
            jsonl([{"p": "x", "c": "yes", "r": "no"}]),
            **COLUMNS,
            apply_chat_template=True,
        )


# --- rows whose dialogues part early -----------------------------------------------------------------------

EARLY = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c\n\nAssistant: d"}


def test_dialogues_that_differ_earlier_by_the_named_rule(tokenizer, jsonl):
    other_question = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: c"}
    longer = {"chosen": EARLY["chosen"], "rejected": EARLY["chosen"] + "\n\nHuman: b\n\nAssistant: c"}
    good = {"chosen": START + " yes", "rejected": START + " no"}
    path = jsonl([EARLY, other_question, longer, good])
    loaded = load(tokenizer, path)
    assert loaded.counts["dropped_differs_earlier"] == 3
    assert list(loaded.dropped) == [DroppedRow("rows", n, "differs_earlier") for n in (1, 2, 3)]
    loaded = load(tokenizer, path, differs_earlier="cut")
    assert (loaded.counts["cut_to_first_difference"], loaded.counts["dropped_differs_earlier"]) == (1, 2)
    assert texts(tokenizer, loaded.pairs[0]) == ("\n\nHuman: a\n\nAssistant:", " b<|im_end|>", " c<|im_end|>")
    with pytest.raises(DataError, match=r"row 1 of rows: the two dialogues differ before .*turn 2 of 2 and 3"):
        load(tokenizer, path, differs_earlier="refuse")


def test_turns_of_one_speaker_in_a_row(tokenizer, jsonl):
    """They stay as they are in a text, and are one message for a chat template, which wants speakers to alternate."""
    start = "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nAssistant:"
    path = jsonl([{"chosen": start + " yes", "rejected": start + " no"}])
    assert texts(tokenizer, one(tokenizer, path))[0] == start
    prompt = texts(tokenizer, one(tokenizer, path, apply_chat_template=True))[0]
    assert "<|im_start|>assistant\nb\n\nc<|im_end|>\n<|im_start|>user\nd<|im_end|>" in prompt
    second = {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c"}
    second["rejected"] = second["chosen"][:-1] + "d"
    good = {"chosen": START + " yes", "rejected": START + " no"}
    assert load(tokenizer, jsonl([second, good]), apply_chat_template=True).counts["dropped_no_question"] == 1


def test_a_system_text_before_the_first_turn(tokenizer, jsonl):
    path = jsonl([{"chosen": "Be kind." + START + " yes", "rejected": "Be kind." + START + " no"}])
    assert texts(tokenizer, one(tokenizer, path))[0] == "Be kind." + START
    assert texts(tokenizer, one(tokenizer, path, apply_chat_template=True))[0].startswith(
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi"
    )


# --- length ------------------------------------------------------------------------------------------------

letters = st.text("abcdefgh", min_size=1, max_size=30)


@given(letters, letters, letters, st.integers(3, 40))
def test_what_is_cut(tmp_path_factory, make_tokenizer, prompt, chosen, rejected, limit):
    """The prompt loses its beginning, an answer its end, neither more than needed nor all of itself."""
    tokenizer = make_tokenizer()
    path = tmp_path_factory.mktemp("pairs") / "d.jsonl"
    path.write_text(
        json.dumps({"p": "q", "c": "a", "r": "b"}) + "\n" + json.dumps({"p": prompt, "c": chosen, "r": rejected})
    )
    loaded = load(tokenizer, str(path), **COLUMNS, max_tokens=limit)
    if len(loaded.pairs) == 1:
        (left_out,) = loaded.dropped
        assert (left_out.row, left_out.reason) == (2, "identical" if chosen == rejected else "identical_when_cut")
        shared = min(len(chosen), len(rejected))
        assert chosen[:shared] == rejected[:shared] or limit < shared + len(prompt) + 1
        return
    pair = loaded.pairs[1]
    ids = [tokenizer(text)["input_ids"] for text in (prompt, chosen, rejected)]
    full = [ids[0], *([*answer, tokenizer.eos_token_id] for answer in ids[1:])]
    got = [list(part) for part in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)]
    assert all(got) and got[1] != got[2]
    assert full[0][-len(got[0]) :] == got[0]
    assert all(whole[: len(part)] == part for part, whole in zip(got[1:], full[1:], strict=True))
    longest = max(len(got[1]), len(got[2]))
    assert len(got[0]) + longest <= limit
    if len(full[0]) + max(len(full[1]), len(full[2])) <= limit:
        assert got == full
        assert not {"cut_prompts", "cut_responses"} & loaded.counts.keys()
    else:
        assert len(got[0]) + longest == limit, "no more is cut than needed"
        assert len(got[0]) >= min(len(full[0]), limit // 2), "half of the room is the prompt's if it needs it"
        if got[1:] != full[1:]:
            assert len(got[0]) <= max(limit // 2, 1), "an answer gives way to half of the room at most"
        assert loaded.counts["cut_prompts"] == (got[0] != full[0])
        assert loaded.counts["cut_responses"] == (got[1] != full[1]) + (got[2] != full[2])


def test_a_cut_prompt_keeps_its_bos(make_tokenizer, jsonl):
    tokenizer = make_tokenizer(bos_token="<|im_start|>")
    path = jsonl([{"p": "<|im_start|>a long question", "c": "yes", "r": "no"}])
    assert texts(tokenizer, one(tokenizer, path, **COLUMNS, max_tokens=10)) == (
        "<|im_start|>stion",
        "yes<|im_end|>",
        "no<|im_end|>",
    )


# --- rows that are left out --------------------------------------------------------------------------------


def test_rows_left_out_are_counted_by_reason_and_listed(tokenizer, jsonl, tmp_path):
    rows = [
        {"p": "x", "c": "yes", "r": "no"},
        {"p": "x", "c": "ye<|im_end|>s", "r": "no"},
        {"p": "x", "c": "yes", "r": "yes\n"},
        {"p": "x", "c": " ", "r": "no"},
        {"p": "x", "c": "<|im_end|>", "r": "no"},
        {"p": "", "c": "yes", "r": "no"},
        {"p": "x", "c": "yes, a very long time", "r": "yes, a very long way"},
    ]
    loaded = load(tokenizer, jsonl(rows), **COLUMNS, max_tokens=12)
    assert loaded.counts == {
        "rows": 7,
        "pairs": 1,
        "tokens": 1 + 4 + 1 + 3,
        "response_tokens": 4 + 3,
        "dropped_identical": 1,
        "dropped_empty_response": 2,
        "dropped_empty_prompt": 1,
        "dropped_eos_inside": 1,
        "dropped_identical_when_cut": 1,
    }
    write_dropped(tmp_path / "run" / "dropped.jsonl", loaded.dropped)
    listed = [json.loads(line) for line in (tmp_path / "run" / "dropped.jsonl").read_text().splitlines()]
    assert [(row["row"], row["reason"]) for row in listed] == [
        (2, "eos_inside"),
        (3, "identical"),
        (4, "empty_response"),
        (5, "empty_response"),
        (6, "empty_prompt"),
        (7, "identical_when_cut"),
    ]
    assert {row["source"] for row in listed} == {"rows"}


def test_ids_are_stable_under_limits_and_tell_duplicates_apart(tokenizer, jsonl):
    rows = [{"p": "x", "c": "yes", "r": "no"}] * 2 + [{"p": "a long prompt", "c": "yes", "r": "no"}]
    free = load(tokenizer, jsonl(rows), **COLUMNS)
    cut = load(tokenizer, jsonl(rows), **COLUMNS, max_tokens=8)
    assert [pair.id for pair in free.pairs] == [pair.id for pair in cut.pairs]
    assert len({pair.id for pair in free.pairs}) == 3


def test_pairs_that_are_too_long_are_left_out_or_refused_where_that_is_asked_for(tokenizer, jsonl):
    path = jsonl([{"p": "x", "c": "yes", "r": "no"}, {"p": "a long prompt", "c": "yes", "r": "no"}])
    loaded = load(tokenizer, path, **COLUMNS, max_tokens=8, overlong="drop")
    assert (loaded.counts["pairs"], loaded.counts["dropped_overlong"]) == (1, 1)
    assert [(row.row, row.reason) for row in loaded.dropped] == [(2, "overlong")]
    with pytest.raises(DataError, match=r"row 2 of rows has 17 tokens, more than the 8 of --data.max_len"):
        load(tokenizer, path, **COLUMNS, max_tokens=8, overlong="refuse")


def test_margins_are_read_where_they_are_asked_for(tokenizer, jsonl):
    path = jsonl([{"p": "x", "c": "yes", "r": "no", "m": 2}, {"p": "y", "c": "yes", "r": "no", "m": 0.5}])
    assert [pair.margin for pair in load(tokenizer, path, **COLUMNS, margin_key="m").pairs] == [2.0, 0.5]
    assert [pair.margin for pair in load(tokenizer, path, **COLUMNS).pairs] == [0.0, 0.0]


def test_pairs_become_rows_of_a_batch(tokenizer, jsonl):
    pair = one(tokenizer, jsonl([{"p": "ab", "c": "yes", "r": "n"}]), **COLUMNS)
    batch = token_batch([pair.chosen, pair.rejected], tokenizer.pad_token_id)
    assert [tuple(key) for key in batch.keys] == [(pair.id, 0), (pair.id, 1)]
    assert batch.lengths_B.tolist() == [6, 4]
    assert batch.action_BA.tolist() == [[False, True, True, True, True], [False, True, True, False, False]]


def test_more_rows_than_are_tokenized_at_once(tokenizer, jsonl):
    rows = [{"p": f"{n}", "c": "yes", "r": "yes" if n % 7 == 3 else f"no {n}"} for n in range(2300)]
    loaded = load(tokenizer, jsonl(rows), **COLUMNS)
    kept = [n for n in range(2300) if n % 7 != 3]
    assert [tokenizer.decode(pair.prompt_ids) for pair in loaded.pairs] == [str(n) for n in kept]
    assert [tokenizer.decode(pair.rejected_ids) for pair in loaded.pairs] == [f"no {n}<|im_end|>" for n in kept]
    assert [row.row - 1 for row in loaded.dropped] == [n for n in range(2300) if n % 7 == 3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"input_template": "Q: {}"}, "goes around a prompt: name its column with --data.prompt_key"),
        ({**COLUMNS, "input_template": "Q"}, "must hold {} where the input goes"),
        ({**COLUMNS, "input_template": "{}", "apply_chat_template": True}, "no effect with --data.apply_chat_template"),
        ({"chosen_key": "c", "rejected_key": "c"}, "both name the column 'c'"),
    ],
)
def test_settings_that_contradict_each_other(tokenizer, jsonl, settings, said):
    with pytest.raises(ConfigError, match=said):
        load(tokenizer, jsonl([{"p": "x", "c": "yes", "r": "no"}]), **settings)


# --- real rows ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HH.is_file(), reason="the rows of hh-rlhf are not beside this checkout")
@pytest.mark.parametrize("chat", [False, True])
def test_real_dialogues(tokenizer, chat):
    loaded = load(tokenizer, str(HH), apply_chat_template=chat, max_tokens=1024)
    counts = loaded.counts
    assert counts["rows"] == 1800 == counts["pairs"] + len(loaded.dropped)
    assert (counts["dropped_empty_response"], counts["dropped_differs_earlier"]) == (4, 2)
    eos = tokenizer.eos_token_id
    ends = 0
    for pair in loaded.pairs:
        for answer in (pair.chosen_ids, pair.rejected_ids):
            assert eos not in answer[:-1]
            ends += answer[-1] == eos
            assert len(pair.prompt_ids) + len(answer) <= 1024
    assert ends == 2 * counts["pairs"] - counts["cut_responses"]
    rows = [json.loads(line) for line in HH.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    row, pair = rows[0], loaded.pairs[0]
    prompt, chosen, rejected = texts(tokenizer, pair)
    assert (prompt + chosen).endswith(row["chosen"][-60:] + "<|im_end|>")
    assert rejected.removesuffix("<|im_end|>").strip() == row["rejected"].rpartition("\n\nAssistant:")[2].strip()
    assert chat or row["chosen"].startswith(prompt)
