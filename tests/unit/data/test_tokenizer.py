"""Tokenizers from folders."""

from __future__ import annotations

import pytest

from openrlhf_ext.data.chat import check_chat_template
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.errors import DataError


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return folder


def test_pad_token_by_the_named_rule(make_tokenizer, tmp_path):
    kept = load_tokenizer(saved(make_tokenizer(pad_token="<|im_start|>"), tmp_path / "kept"))
    assert kept.pad_token == "<|im_start|>"
    chosen = load_tokenizer(saved(make_tokenizer(), tmp_path / "chosen"))
    assert (chosen.pad_token, chosen.eos_token) == ("<|endoftext|>", "<|im_end|>")
    last = load_tokenizer(saved(make_tokenizer(eos_token="<|endoftext|>"), tmp_path / "last"))
    assert last.pad_token == last.eos_token
    assert len(last) == len(make_tokenizer())  # the vocabulary never grows
    assert {t.padding_side for t in (kept, chosen, last)} == {"right"}


def test_chat_template_given(make_tokenizer, tmp_path):
    folder = saved(make_tokenizer(), tmp_path)
    check_chat_template(load_tokenizer(folder, chat_template="{{ messages[0].content }}"))
    with pytest.raises(DataError, match=r"has no chat template.*--data.input_template"):
        check_chat_template(load_tokenizer(folder))
    with pytest.raises(DataError, match="does not take the messages of a test message"):
        check_chat_template(load_tokenizer(folder, chat_template="{{ messages[0].no.where }}"))
    with pytest.raises(DataError, match="does not take the messages of a test message"):
        check_chat_template(load_tokenizer(folder, chat_template="{% if %}"))


def test_folders_that_hold_no_tokenizer(make_tokenizer, tmp_path):
    with pytest.raises(DataError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(DataError, match="has no EOS token"):
        load_tokenizer(saved(make_tokenizer(eos_token=None), tmp_path / "endless"))
