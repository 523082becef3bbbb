"""What an environment says, as the text that follows the tokens of a talk so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openrlhf_ext.data.chat import render_chat
from openrlhf_ext.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "8d1fe2c07a"  # an answer of the assistant's, to be found again in what the template makes of it


def told_text(tokenizer: PreTrainedTokenizerBase, parts: Sequence[Mapping[str, Any]], *, begun: bool, end: str) -> str:
    """The parts in a row: texts as they stand, messages by the chat template (those next to each other as one list).

    `begun` says that the talk has tokens already, and `end` is the text of the token by which the policy itself ended
    its turn, "" where it did not: the template's own end of a turn is then not written a second time.
    Raises DataError where the template cannot take the messages.
    """
    said = ""
    waiting: list[Mapping[str, Any]] = []
    for part in [*parts, {"text": ""}]:
        if "messages" in part:
            waiting += part["messages"]
            continue
        if waiting:
            said += _continued(tokenizer, waiting, end) if begun or said else _opened(tokenizer, waiting)
            waiting = []
        said += part["text"]
    return said


def _opened(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> str:
    return render_chat(tokenizer, messages, "tell_messages", generation_prompt=True)


def _continued(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], end: str) -> str:
    """What the template writes after an assistant's answer when these messages follow it."""
    before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
    whole = render_chat(tokenizer, [*before, *messages], "tell_messages", generation_prompt=True)
    if whole.count(MARK) != 1:
        raise DataError(
            f"the chat template of {tokenizer.name_or_path} does not write an earlier answer once and as it is, so "
            "messages cannot follow one: tell a text, with the markup that the model wants."
        )
    return whole.partition(MARK)[2].removeprefix(end)
