"""Messages after a turn, by chat templates of several kinds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from played import TOKENIZER

from openrlhf_ext.errors import DataError
from openrlhf_ext.rollout.agents.texts import told_text

LLAMA = """\
{{- '<bos>' }}{%- for m in messages %}{{- '[' + m['role'] + ']' + m['content'] | trim + '<eot>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}"""
THINKS = """\
{%- set last = messages | length - 1 %}{%- for m in messages %}
{%- if m['role'] == 'assistant' and loop.index0 == last %}{{- '<a><think></think>' + m['content'] + '<end>\\n' }}
{%- else %}{{- '<' + m['role'][0] + '>' + m['content'] + '<end>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<a>' }}{%- endif %}"""
FORGETS = "{%- for m in messages if m['role'] == 'user' %}{{- m['content'] }}{%- endfor %}"
PICKY = "{%- for m in messages %}{%- if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{%- endif %}" \
        "{{- m['content'] }}{%- endfor %}"  # fmt: skip
USER = {"role": "user", "content": "And you?"}


def tokenizer(template: str) -> Any:
    copied = copy.deepcopy(TOKENIZER)
    copied.chat_template = template
    return copied


@pytest.mark.parametrize("template", [LLAMA, THINKS, TOKENIZER.chat_template], ids=["llama", "thinks", "chatml"])
@pytest.mark.parametrize("messages", [[USER], [{"role": "tool", "content": "4"}, USER]], ids=["one", "two"])
@pytest.mark.parametrize("ends_itself", [True, False])
def test_what_follows_a_turn_is_what_the_template_writes_there(template: str, messages: list, ends_itself: bool):
    made = tokenizer(template)
    before = [{"role": "user", "content": "How are you?"}]
    opened = told_text(made, [{"messages": before}], begun=False, end="")
    assert opened == made.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
    whole = made.apply_chat_template(
        [*before, {"role": "assistant", "content": "Fine."}, *messages], tokenize=False, add_generation_prompt=True
    )
    end = next(each for each in ("<eot>", "<end>", "<|im_end|>") if each in whole) if ends_itself else ""
    parts = [{"messages": [message]} for message in messages]
    assert opened + "Fine." + end + told_text(made, parts, begun=True, end=end) == whole


def test_texts_stand_as_they_are_between_messages():
    parts = [{"text": "a "}, {"text": " b<|im_end|>"}, {"messages": [USER]}, {"text": "Well, "}]
    found = told_text(TOKENIZER, parts, begun=True, end="<|im_end|>")
    assert found == "a  b<|im_end|>" + "\n<|im_start|>user\nAnd you?<|im_end|>\n<|im_start|>assistant\n" + "Well, "
    assert told_text(TOKENIZER, [], begun=False, end="") == ""


def test_a_template_that_cannot_go_on_is_told():
    with pytest.raises(DataError, match="does not write an earlier answer once"):
        told_text(tokenizer(FORGETS), [{"messages": [USER]}], begun=True, end="")
    with pytest.raises(DataError, match="no tools"):
        told_text(tokenizer(PICKY), [{"messages": [{"role": "tool", "content": "x"}]}], begun=True, end="")
