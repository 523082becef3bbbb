"""Texts of rows to tokens, and the one EOS at the end of a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from openrlhf_ext.data.dropped import Dropped
from openrlhf_ext.data.tables import Row
from openrlhf_ext.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def text_of(row: Row, column: str) -> str:
    """The column's text; DataError for anything else."""
    value = row[column]
    if isinstance(value, str):
        return value
    if value is None:
        raise DataError(f"{row.where}: column {column!r} is empty (null), not text: fill it or leave the row out.")
    raise DataError(
        f"{row.where}: column {column!r} is {type(value).__name__}, not text; messages need --data.apply_chat_template."
    )


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], where: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens that it does not spell; `where` names its row in an error."""
    for text, place in zip(texts, where, strict=True):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place} holds half of a surrogate pair ({text[error.start]!a}), which is no character: "
                "write the file anew as UTF-8."
            ) from None
    # One int object for each token that occurs, not for each occurrence: 28 bytes less for every other one.
    known: dict[int, int] = {}
    return [
        list(map(known.setdefault, ids, ids)) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    ]


def room_for_prompt(prompt: int, response: int, limit: int) -> int:
    """How many tokens a prompt keeps where prompt and response have more than `limit`: the response comes first, and
    gives way only where half of the limit is not enough for it."""
    return min(prompt, max(limit - response, limit // 2))


def ending(prompt: list[int], room: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt's last `room` tokens, after its BOS if it has one: models read badly without."""
    if 1 < room < len(prompt) and prompt[0] == tokenizer.bos_token_id:
        return [prompt[0], *prompt[len(prompt) - room + 1 :]]
    return prompt[len(prompt) - room :]


def ended(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A response with EOS once, at its end. Raises Dropped if it goes on after an EOS that it spells itself."""
    eos = tokenizer.eos_token_id
    if eos not in ids:
        return [*ids, eos]
    end = ids.index(eos) + 1
    if str(tokenizer.decode(ids[end:])).strip():
        raise Dropped("eos_inside")
    return ids[:end]
