"""Inputs that cannot be trained on, each answered by one sentence that says what, where and the remedy.

The tokenizer and the rows are loaded the way the commands load them, before any model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_files import FILES, PAIR, TOKENIZERS, Bad, Write, of_table, pairs

from openrlhf_ext.data.preferences import PreferenceSettings, load_preferences
from openrlhf_ext.data.sft import SftSettings, load_sft
from openrlhf_ext.data.tables import parse_probs
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.errors import UserError

ROW = {"input": "a", "output": "b"}
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
COLUMNS = {"prompt_key": "p", "chosen_key": "c", "rejected_key": "r"}
NO_MARKS = "Chat: {% for m in messages %}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}"
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}:{% endif %}"
)
HUGE = "many words " * 40_000


def sft(name: str, said: str, data: Write | list[Any], **settings: Any) -> Bad:
    return Bad(name, said, data, of="sft", settings={"output_key": "output", **settings})


def chat(name: str, said: str, data: list[Any], template: str | None = None, of: str = "sft", **settings: Any) -> Bad:
    kwargs = {} if template is None else {"chat_template": template}
    return Bad(name, said, data, of, {"apply_chat_template": True, **settings}, kwargs)


COLUMN_CASES = [
    pairs(
        "no chosen column",
        r"row 1 of rows has no column 'chosen' \(--data.chosen_key\); the columns there are: a, r",
        [{"a": 1, "r": 2}],
    ),
    pairs(
        "a column that ends early",
        r"row 2 of rows has no column 'rejected' \(--data.rejected_key\)",
        [PAIR, {"chosen": "x"}],
    ),
    pairs("no prompt column", r"no column 'p' \(--data.prompt_key\)", [{"c": "x", "r": "y"}], **COLUMNS),
    pairs("no margin column", r"no column 'm' \(--data.margin_key\)", [PAIR], margin_key="m"),
    sft("no answer column", r"no column 'output' \(--data.output_key\)", [{"input": "x"}]),
    sft("an answer that is a number", "row 1 of rows: column 'output' is int, not text", [{"input": "x", "output": 4}]),
    sft(
        "an answer that is null",
        r"column 'output' is empty \(null\), not text: fill it or leave the row out",
        [{"input": "x", "output": None}],
    ),
    pairs("a null answer", r"row 2 of rows: column 'rejected' is empty \(null\)", [PAIR, {**PAIR, "rejected": None}]),
    pairs("bytes", "column 'chosen' is bytes, not text", of_table({"chosen": [b"a"], "rejected": [b"b"]})),
    sft(
        "messages without the flag",
        "column 'input' is list, not text; messages need --data.apply_chat_template",
        [{"input": TURNS, "output": "x"}],
    ),
    pairs(
        "pairs of messages without the flag",
        "column 'chosen' is list.*--data.apply_chat_template",
        [{"chosen": TURNS, "rejected": TURNS}],
    ),
    sft(
        "half a surrogate pair",
        r"row 1 of rows holds half of a surrogate pair \('\\ud83d'\)",
        [{"input": "x", "output": "\ud83d"}],
    ),
    pairs(
        "half a surrogate pair in an answer",
        "row 1 of rows holds half of a surrogate pair",
        [{**PAIR, "chosen": PAIR["chosen"] + "\ud83d"}],
    ),
    pairs(
        "texts that are no dialogues",
        r"'chosen' is a text without '\\n\\nHuman:'.*name the prompt's column with --data.prompt_key",
        [{"chosen": "a", "rejected": "b"}],
    ),
    pairs(
        "dialogues that differ early",
        "the two dialogues differ before their last turns",
        [{**PAIR, "chosen": "\n\nHuman: z\n\nAssistant: b"}],
        differs_earlier="refuse",
    ),
    *(
        pairs(
            f"a margin of {m!r}",
            r"column 'm' \(--data.margin_key\) is .*, not a finite number",
            [{**PAIR, "m": m}],
            margin_key="m",
        )
        for m in ("1", None, True, float("nan"))
    ),
    sft("two shares for one data set", "2 probabilities for 1 data sets: give one for each", [ROW], probs=(0.5, 0.5)),
    sft("a template without a place", "must hold {} where the input goes", [ROW], input_template="Q:"),
    sft("no response to learn", "--data.output_key is not given", [ROW], output_key=None),
    sft("turns that nothing tells apart", "--data.multiturn needs --data.apply_chat_template", [ROW], multiturn=True),
    sft(
        "a row above the limit",
        "row 1 of rows has 11 tokens, more than the 8 of --data.max_len",
        [{"input": "a bit lo", "output": "ng"}],
        max_tokens=8,
        overlong="refuse",
    ),
]

NOTHING_LEFT = [
    pairs(
        "chosen is rejected everywhere",
        r"none of the 2 rows .*\(2 identical\): check the columns",
        [dict.fromkeys(PAIR, PAIR["chosen"])] * 2,
    ),
    pairs(
        "no rejected answer says anything",
        r"none .*\(1 empty_response\)",
        [{"p": "x", "c": "y", "r": " \n"}],
        **COLUMNS,
    ),
    pairs("no prompt says anything", r"none .*\(1 empty_prompt\)", [{"p": "", "c": "y", "r": "z"}], **COLUMNS),
    pairs(
        "answers that are alike as far as they fit",
        r"none .*\(1 identical_when_cut\).*--data.max_len",
        [{"p": "x", "c": HUGE + "a", "r": HUGE + "b"}],
        **COLUMNS,
        max_tokens=64,
    ),
    pairs(
        "dialogues that end with a question",
        r"none .*\(1 no_response\)",
        [{"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}],
    ),
    pairs(
        "dialogues of different prompts",
        r"none .*\(1 differs_earlier\)",
        [{**PAIR, "chosen": "\n\nHuman: z\n\nAssistant: b"}],
    ),
    pairs("an EOS inside", r"none .*\(1 eos_inside\)", [{"p": "x", "c": "y<|im_end|>z", "r": "z"}], **COLUMNS),
    sft(
        "no response says anything",
        r"none of the 2 rows .*\(2 empty_response\)",
        [{"input": "x", "output": ""}, {"input": "x", "output": "<|im_end|>"}],
    ),
    sft(
        "a prompt without room for its answer",
        r"none .*\(1 prompt_too_long\).*--data.max_len",
        [{"input": HUGE, "output": "x"}],
        max_tokens=64,
        overlong="truncate_right",
    ),
    sft(
        "over-long rows only",
        r"none .*\(1 overlong\)",
        [{"input": "x" * 99, "output": "x"}],
        max_tokens=64,
        overlong="drop",
    ),
    sft("plain text without a text", r"none .*\(1 empty_prompt\)", [{"input": ""}], pretrain=True),
]

TEMPLATES = [
    chat("no chat template", "has no chat template, which --data.apply_chat_template needs", [{"input": TURNS}]),
    chat("no chat template for pairs", "has no chat template", [PAIR], of="pairs"),
    chat(
        "a template that is no template",
        "chat template of .* does not take the messages of a test message",
        [{"input": TURNS}],
        "{% if %}",
    ),
    chat(
        "a template that wants other roles",
        "does not take the messages of row 1 of rows .*roles must alternate",
        [{"input": TURNS[1:]}],
        ALTERNATING,
    ),
    chat(
        "a template that marks nothing",
        r"blocks in the chat template of .* mark no token of this conversation: mend",
        [{"input": TURNS}],
        NO_MARKS,
        multiturn=True,
    ),
    chat(
        "a conversation without an answer",
        "ends with the role 'user', so there is no response",
        [{"input": TURNS[:1]}],
        "{{ messages }}",
    ),
    chat(
        "pairs without an answer",
        "column 'chosen' ends with the role 'user': end it with the assistant's answer",
        [{"chosen": TURNS[:1], "rejected": TURNS[:1]}],
        "{{ messages }}",
        "pairs",
    ),
    chat(
        "a message without content",
        "column 'input' is neither a text nor a list of messages",
        [{"input": [{"role": "user"}]}],
        "{{ messages }}",
    ),
    chat(
        "a list of texts",
        "column 'chosen' is neither a text nor a list of messages",
        [{"chosen": ["a"], "rejected": ["b"]}],
        "{{ messages }}",
        "pairs",
    ),
    chat(
        "a conversation without messages",
        "'input' is neither a text nor a list of messages",
        [{"input": []}],
        "{{ messages }}",
    ),
    chat(
        "a text beside messages",
        "'chosen' is a text and the other answer is messages: give both in one form",
        [{"chosen": "b", "rejected": TURNS}],
        "{{ messages }}",
        "pairs",
    ),
    chat(
        "dialogues that are none",
        "is a text without .*--data.prompt_key",
        [{"chosen": "a", "rejected": "b"}],
        "{{ messages }}",
        "pairs",
    ),
]

CORPUS = [*FILES, *COLUMN_CASES, *NOTHING_LEFT, *TEMPLATES, *TOKENIZERS]


def load(case: Bad, folder: Path, make_tokenizer: Callable[..., Any]) -> None:
    """The tokenizer and the rows as the commands load them."""
    data, model = folder / "data", folder / "model"
    data.mkdir()
    model.mkdir()
    if case.tokenizer_folder is not None:
        name = case.tokenizer_folder(model)
    else:
        make_tokenizer(**case.tokenizer).save_pretrained(model)
        name = str(model)
    if isinstance(case.data, list):
        (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in case.data))
        dataset = str(data / "rows.jsonl")
    else:
        dataset = case.data(data)
    tokenizer = load_tokenizer(name)
    if case.of == "sft":
        load_sft(SftSettings(dataset, **case.settings), tokenizer)
    else:
        load_preferences(PreferenceSettings(dataset, **case.settings), tokenizer)


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_bad_input_is_answered_by_one_sentence(case: Bad, tmp_path: Path, make_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=case.said) as caught:
        load(case, tmp_path, make_tokenizer)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 600, sentence
    assert sentence.endswith((".", "?")), sentence


def test_the_corpus_is_a_corpus() -> None:
    assert len({case.name for case in CORPUS}) == len(CORPUS) >= 40
    assert {case.of for case in CORPUS} == {"sft", "pairs"}


def test_shares_that_are_no_numbers() -> None:
    with pytest.raises(UserError, match=r"are not numbers joined by commas, like 0.3,0.7"):
        parse_probs("0.3;0.7")
