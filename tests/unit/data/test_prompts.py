"""Rows to prompts."""

from __future__ import annotations

import pytest

from openrlhf_ext.data.prompts import PromptSettings, load_prompts
from openrlhf_ext.errors import ConfigError, DataError


def test_template_label_source_and_meta(tokenizer, jsonl):
    path = jsonl([{"q": "1+1", "a": 2, "level": "easy"}, {"q": "2+2", "a": 4, "datasource": "sums"}], "maths.jsonl")
    settings = PromptSettings(path, input_key="q", label_key="a", input_template="Q: {}\nA: ")
    first, second = load_prompts(settings, tokenizer).prompts
    assert first.text == "Q: 1+1\nA: "
    assert tokenizer.decode(first.token_ids) == first.text
    assert (first.label, first.source, dict(first.meta)) == (2, "maths", {"level": "easy"})
    assert (second.label, second.source, dict(second.meta)) == (4, "sums", {})


def test_chat_template_takes_a_text_or_messages(tokenizer, jsonl):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    path = jsonl([{"input": "Hi"}, {"input": messages}])
    settings = PromptSettings(path, apply_chat_template=True, input_template="ignored, as in OpenRLHF")
    prompts = load_prompts(settings, tokenizer).prompts
    assert [prompt.messages for prompt in prompts] == [messages[1:], messages], "for readers with another template"
    texts = [prompt.text for prompt in prompts]
    user = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert texts == [user, "<|im_start|>system\nBe brief.<|im_end|>\n" + user]
    ids = load_prompts(settings, tokenizer).prompts[0].token_ids
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids.count(tokenizer.eos_token_id) == 1  # nothing is added


def test_ids_are_unique_and_stable(tokenizer, jsonl):
    rows = [{"input": "same", "l": "1"}, {"input": "same", "l": "1"}, {"input": "same", "l": "2"}, {"input": "other"}]
    rows[3]["l"] = None
    settings = PromptSettings(jsonl(rows), label_key="l")
    ids = [prompt.id for prompt in load_prompts(settings, tokenizer).prompts]
    assert len(set(ids)) == 4
    assert ids == [prompt.id for prompt in load_prompts(settings, tokenizer).prompts]
    moved = PromptSettings(jsonl([rows[3], rows[0]]), label_key="l")
    assert [prompt.id for prompt in load_prompts(moved, tokenizer).prompts] == [ids[3], ids[0]]


def test_without_a_label_key_labels_are_empty_texts(tokenizer, jsonl):
    [prompt] = load_prompts(PromptSettings(jsonl([{"input": "x"}])), tokenizer).prompts
    assert prompt.label == ""


OVERLONG = [{"input": "0123456789"}, {"input": "abc"}, {"input": "x" * 6}]


def test_overlong_is_dropped_and_counted(tokenizer, jsonl):
    loaded = load_prompts(PromptSettings(jsonl(OVERLONG), max_prompt_tokens=5, overlong="drop"), tokenizer)
    assert [prompt.text for prompt in loaded.prompts] == ["abc"]
    assert loaded.counts == {"rows": 3, "prompts": 1, "overlong_dropped": 2}
    with pytest.raises(DataError, match="all 3 prompts"):
        load_prompts(PromptSettings(jsonl(OVERLONG), max_prompt_tokens=2, overlong="drop"), tokenizer)


def test_overlong_is_truncated_on_the_left_and_counted(tokenizer, jsonl):
    loaded = load_prompts(PromptSettings(jsonl(OVERLONG), max_prompt_tokens=5, overlong="truncate_left"), tokenizer)
    assert [prompt.text for prompt in loaded.prompts] == ["56789", "abc", "xxxxx"]
    assert all(tokenizer.decode(prompt.token_ids) == prompt.text for prompt in loaded.prompts)
    assert loaded.counts == {"rows": 3, "prompts": 3, "overlong_truncated": 2}


def test_overlong_is_refused(tokenizer, jsonl):
    with pytest.raises(DataError, match="row 1 of rows has a prompt of 10 tokens, more than the 9"):
        load_prompts(PromptSettings(jsonl(OVERLONG), max_prompt_tokens=9), tokenizer)


@pytest.mark.parametrize(
    ("row", "settings", "said"),
    [
        ({"question": "x"}, {}, "no column 'input' .*--data.input_key.*: question"),
        ({"input": "x"}, {"label_key": "answer"}, "no column 'answer' .*--data.label_key"),
        ({"input": ""}, {}, "without any token"),
        ({"input": 3}, {}, "is int, not text"),
        ({"input": None}, {"apply_chat_template": True}, "neither a text nor a list of messages"),
        ({"input": [{"from": "x"}]}, {"apply_chat_template": True}, "neither a text nor a list of messages"),
    ],
)
def test_rows_that_are_no_prompts(tokenizer, jsonl, row, settings, said):
    with pytest.raises(DataError, match=said):
        load_prompts(PromptSettings(jsonl([row]), **settings), tokenizer)


def test_a_template_that_takes_no_input(tokenizer, jsonl):
    for template in ("no place", "{question}", "{", "{}{}"):
        with pytest.raises(ConfigError, match="input_template"):
            load_prompts(PromptSettings(jsonl([{"input": "x"}]), input_template=template), tokenizer)
    [prompt] = load_prompts(PromptSettings(jsonl([{"input": "{x}"}]), input_template="{{{}}}"), tokenizer).prompts
    assert prompt.text == "{{x}}"


def test_a_chat_template_is_there_and_takes_the_messages(make_tokenizer, jsonl):
    path = jsonl([{"input": [{"role": "assistant", "content": "x"}]}])
    settings = PromptSettings(path, apply_chat_template=True)
    with pytest.raises(DataError, match="no chat template"):
        load_prompts(settings, make_tokenizer())
    picky = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}x"
    with pytest.raises(DataError, match=r"row 1 of rows \(TemplateError: user first\)"):
        load_prompts(settings, make_tokenizer(chat_template=picky))
