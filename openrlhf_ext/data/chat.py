"""Conversations through a chat template: messages from a row, their text, and who wrote which part of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openrlhf_ext.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Segments = list[tuple[str, bool]]
"""A text in parts, each with whether the assistant wrote it."""


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DataError unless the tokenizer has a chat template that renders a user message."""
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template, which --data.apply_chat_template needs: "
            "leave that flag out and use --data.input_template, or give a tokenizer with a template."
        )
    render_chat(tokenizer, [{"role": "user", "content": "Hello"}], "a test message", generation_prompt=True)


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], where: str, *, generation_prompt: bool
) -> str:
    """The messages as one text by the tokenizer's chat template; DataError names `where` if it refuses them."""
    import jinja2

    try:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=generation_prompt
        )
    except (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"the chat template of {tokenizer.name_or_path} does not take the messages of {where} "
            f"({type(error).__name__}: {error}): check their roles and order, or use another template."
        ) from None
    assert isinstance(text, str)
    return text


def as_messages(value: Any, where: str, column: str, role: str = "user") -> list[dict[str, Any]]:
    """A string as one message of `role`, a list of messages as it is; DataError for anything else."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if (
        value
        and isinstance(value, Sequence)
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
    ):
        # parquet and arrow give every message all fields: those that are null were not there
        return [{name: field for name, field in m.items() if field is not None or name == "content"} for m in value]
    raise DataError(
        f"{where}: column {column!r} is neither a text nor a list of messages with 'role' and 'content' "
        f"(it is {type(value).__name__}: {str(value)[:60]!r})."
    )


def assistant_segments(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], where: str, *, every_turn: bool
) -> Segments:
    """The rendered conversation up to its last assistant turn, cut where an assistant's text starts and ends.

    The prefix-difference rule: a turn's text is what follows the rendering of the messages before it
    with the generation prompt. A template that writes an answer otherwise than its generation prompt
    begins (`<think>`, say) starts the turn where the two part. Raises DataError that names the template
    when it renders earlier messages differently once later ones follow, for then nothing tells the
    turns apart.
    """
    text = render_chat(tokenizer, messages, where, generation_prompt=False)
    last = len(messages) - 1
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and (every_turn or i == last)]
    segments: Segments = []
    done = 0
    for turn in turns:
        before = render_chat(tokenizer, messages[:turn], where, generation_prompt=False) if turn else ""
        asked = render_chat(tokenizer, messages[:turn], where, generation_prompt=True) if turn else ""
        start = len(os.path.commonprefix([asked, text]))  # noqa: RUF071 (of texts, letter by letter)
        end = len(text) if turn == last else _end_of_turn(tokenizer, messages[: turn + 1], text, where)
        if start < len(before) or not done <= start < end:
            raise _ambiguous(tokenizer, where)
        segments += [(text[done:start], False), (text[start:end], True)]
        done = end
    return segments


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], text: str, where: str) -> int:
    upto = render_chat(tokenizer, messages, where, generation_prompt=False)
    if not text.startswith(upto):
        raise _ambiguous(tokenizer, where)
    return len(upto)


def _ambiguous(tokenizer: PreTrainedTokenizerBase, where: str) -> DataError:
    return DataError(
        f"the chat template of {tokenizer.name_or_path} renders earlier messages of {where} otherwise once later ones "
        "follow, so its turns cannot be told apart: learn the last turn only (without --data.multiturn), or give a "
        "template with {% generation %} blocks by --data.tokenizer_chat_template."
    )
