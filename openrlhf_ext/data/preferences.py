"""Rows to preference pairs: a prompt, its better and its worse answer, as tokens.

Both answers of a pair continue the very same prompt tokens, and each ends in EOS exactly once. What belongs to an
answer is kept as a length, never found again by looking for pad or EOS.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from openrlhf_ext.data.chat import as_messages, check_chat_template, render_chat
from openrlhf_ext.data.dialogues import asked_by, compared_turn, said_by, turns_of
from openrlhf_ext.data.dropped import Dropped, DroppedRow, Overlong, by_reason, check_overlong, require_some
from openrlhf_ext.data.prompts import check_template
from openrlhf_ext.data.tables import Row, content_id, load_rows, require_columns
from openrlhf_ext.data.tokens import encode, ended, ending, room_for_prompt, text_of
from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.types import RolloutKey

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_AT_ONCE = 1000  # that many are tokenized in one call, which is faster than one by one


@dataclass(frozen=True, slots=True)
class PreferenceSettings:
    """What `load_preferences` needs to know; the names are those of the `--data` flags.

    `differs_earlier` is the rule for rows whose dialogues part before their last turns: they are left out
    (`drop`), both are cut after the first assistant turn in which they differ (`cut`), or it is an error (`refuse`).
    `overlong` is the one for pairs of more than `max_tokens`: the prompt loses its beginning, and the answers their
    ends only where half of `max_tokens` is not enough for them; or the pair is left out, or it is an error.
    """

    dataset: str
    probs: tuple[float, ...] | None = None
    split: str = "train"
    prompt_key: str | None = None
    chosen_key: str = "chosen"
    rejected_key: str = "rejected"
    margin_key: str | None = None
    input_template: str | None = None
    apply_chat_template: bool = False
    max_samples: int | None = None
    max_tokens: int | None = None
    differs_earlier: Literal["drop", "cut", "refuse"] = "drop"
    overlong: Overlong = "truncate_left"
    seed: int = 42


@dataclass(frozen=True, slots=True)
class PairedAnswer:
    """One side of a pair as a row of a batch: T tokens, the first `prompt_length` of which nobody learns."""

    key: RolloutKey
    token_ids: tuple[int, ...]
    prompt_length: int

    @property
    def action_mask(self) -> tuple[bool, ...]:
        return (False,) * self.prompt_length + (True,) * (len(self.token_ids) - self.prompt_length)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Nobody sampled these tokens."""
        return (0.0,) * len(self.token_ids)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """The prompt's tokens once, then those of each answer. `margin` is by how much the chosen one is better."""

    id: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    margin: float = 0.0

    def __post_init__(self) -> None:
        assert self.prompt_ids and self.chosen_ids and self.rejected_ids, "a prompt and two answers"
        assert self.chosen_ids != self.rejected_ids, "two different answers"

    @property
    def chosen(self) -> PairedAnswer:
        """Sample 0 of the pair's id."""
        return PairedAnswer(RolloutKey(self.id, 0), self.prompt_ids + self.chosen_ids, len(self.prompt_ids))

    @property
    def rejected(self) -> PairedAnswer:
        """Sample 1 of the pair's id."""
        return PairedAnswer(RolloutKey(self.id, 1), self.prompt_ids + self.rejected_ids, len(self.prompt_ids))


@dataclass(frozen=True, slots=True)
class LoadedPreferences:
    """`counts`: rows, pairs, cut_prompts (pairs), cut_responses (answers, which then have no EOS),
    cut_to_first_difference (pairs), tokens (of both sides, each with the prompt), response_tokens, and
    `dropped_REASON` for rows left out: identical, identical_when_cut, overlong, empty_prompt, empty_response,
    differs_earlier, no_response (a dialogue that does not end with the assistant), no_question (through a chat
    template, an answer that follows another), eos_inside (a response
    spells EOS before its end). `dropped` names each of those rows."""

    pairs: list[PreferencePair]
    counts: Mapping[str, int]
    dropped: Sequence[DroppedRow] = ()


class _Texts(NamedTuple):
    row: Row
    prompt: str
    chosen: str
    rejected: str


def load_preferences(settings: PreferenceSettings, tokenizer: PreTrainedTokenizerBase) -> LoadedPreferences:
    """Read, render, tokenize and fit the pairs of a data set or mixture.

    Without `prompt_key` a pair is two dialogues, as texts with "\\n\\nHuman:" and "\\n\\nAssistant:" before each
    turn (hh-rlhf) or as messages, and the prompt is what they have in common; with it, answers or whole
    conversations after a prompt. A chat template renders messages, and dialogues in texts as messages.
    Raises DataError for rows, tokenizer or template that cannot be used and
    if no row is left, ConfigError for settings that contradict each other.
    """
    _check(settings, tokenizer)
    rows = load_rows(
        settings.dataset,
        probs=settings.probs,
        split=settings.split,
        max_samples=settings.max_samples,
        seed=settings.seed,
    )
    columns = {settings.chosen_key: "--data.chosen_key", settings.rejected_key: "--data.rejected_key"}
    if settings.prompt_key is not None:
        columns = {settings.prompt_key: "--data.prompt_key", **columns}
    named = {**columns, settings.margin_key: "--data.margin_key"} if settings.margin_key is not None else columns
    require_columns(rows, named)

    counts: Counter[str] = Counter(rows=len(rows))
    seen: Counter[str] = Counter()
    pairs: list[PreferencePair] = []
    dropped: list[DroppedRow] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        texts = []
        for row in rows[start : start + ROWS_AT_ONCE]:
            try:
                texts.append(_texts(row, settings, tokenizer, counts))
            except Dropped as reason:
                dropped.append(DroppedRow.of(row, reason))
        for each, ids in zip(texts, _encoded(texts, tokenizer), strict=True):
            # before long ones are cut, so that an id does not depend on the length limit
            pair_id = content_id([each.row.source, *(each.row[column] for column in columns)], seen)
            try:
                pairs.append(_pair(pair_id, each.row, ids, settings, tokenizer, counts))
            except Dropped as reason:
                dropped.append(DroppedRow.of(each.row, reason))
    require_some(rows, dropped, settings.dataset)
    counts["pairs"] = len(pairs)
    counts["response_tokens"] = sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    counts["tokens"] = counts["response_tokens"] + 2 * sum(len(pair.prompt_ids) for pair in pairs)
    dropped.sort(key=lambda left_out: (left_out.source, left_out.row))
    return LoadedPreferences(pairs, {**counts, **by_reason(dropped)}, dropped)


def _check(settings: PreferenceSettings, tokenizer: PreTrainedTokenizerBase) -> None:
    if settings.chosen_key == settings.rejected_key:
        raise ConfigError(
            f"--data.chosen_key and --data.rejected_key both name the column {settings.chosen_key!r}: name two columns."
        )
    if settings.apply_chat_template:
        check_chat_template(tokenizer)
    if settings.input_template is None:
        return
    if settings.apply_chat_template:
        raise ConfigError("--data.input_template has no effect with --data.apply_chat_template: leave one of them out.")
    if settings.prompt_key is None:
        raise ConfigError("--data.input_template goes around a prompt: name its column with --data.prompt_key.")
    check_template(settings.input_template)


def _texts(row: Row, settings: PreferenceSettings, tokenizer: PreTrainedTokenizerBase, counts: Counter[str]) -> _Texts:
    """Prompt and answers of a row as texts."""
    keys = (settings.chosen_key, settings.rejected_key)
    raw = settings.prompt_key is None and all(isinstance(row[key], str) for key in keys)
    if settings.apply_chat_template and not raw:
        sides = [_conversation(row, key, settings) for key in keys]
        turn = compared_turn(*sides, row=row, rule=settings.differs_earlier, counts=counts)
        return _rendered(row, sides[0][:turn], [messages[turn] for messages in sides], tokenizer)
    chosen, rejected = (text_of(row, key) for key in keys)
    if settings.prompt_key is not None:
        prompt = text_of(row, settings.prompt_key)
        prompt = settings.input_template.format(prompt) if settings.input_template and prompt else prompt
    else:
        turns = [turns_of(text, row, key) for text, key in zip((chosen, rejected), keys, strict=True)]
        turn = compared_turn(*turns, row=row, rule=settings.differs_earlier, counts=counts)
        if settings.apply_chat_template:
            return _rendered(row, asked_by(turns[0][:turn]), [said_by(side[turn]) for side in turns], tokenizer)
        prompt = turns[0][turn].before
        chosen, rejected = (side[turn].said for side in turns)
    eos = str(tokenizer.eos_token)
    return _checked(_Texts(row, prompt, chosen.removesuffix(eos), rejected.removesuffix(eos)))


def _conversation(row: Row, column: str, settings: PreferenceSettings) -> list[dict[str, Any]]:
    """The prompt, if it has a column, and the messages of this column, the last of which is the assistant's."""
    asked = [] if settings.prompt_key is None else _asked(row, settings.prompt_key)
    value = [row[column]] if isinstance(row[column], Mapping) else row[column]
    if isinstance(value, str) and settings.prompt_key is None:
        raise DataError(
            f"{row.where}: column {column!r} is a text and the other answer is messages: give both in one form, or "
            "name the prompt's column with --data.prompt_key."
        )
    answer = value.strip() if isinstance(value, str) else value
    messages = as_messages(answer, row.where, column, role="assistant")
    if messages[: len(asked)] != asked:  # some data sets repeat the prompt in both conversations
        messages = asked + messages
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{row.where}: the conversation in column {column!r} ends with the role {messages[-1]['role']!r}: "
            "end it with the assistant's answer."
        )
    return messages


def _asked(row: Row, column: str) -> list[dict[str, Any]]:
    """The prompt's messages; a text that is a raw dialogue up to the assistant's turn is taken as its turns."""
    value = row[column]
    if isinstance(value, str) and value.rstrip().endswith("\n\nAssistant:"):
        return asked_by(turns_of(value.rstrip(), row, column)[:-1])
    return as_messages(value, row.where, column)


def _rendered(
    row: Row, prompt: list[dict[str, Any]], answers: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> _Texts:
    """A prompt and two answers through the chat template: an answer is what follows the prompt's rendering."""
    if not all(_says_something(answer) for answer in answers):
        raise Dropped("empty_response")
    if not prompt:
        raise Dropped("empty_prompt")
    before = render_chat(tokenizer, prompt, row.where, generation_prompt=False)
    asked = render_chat(tokenizer, prompt, row.where, generation_prompt=True)
    whole = [render_chat(tokenizer, [*prompt, answer], row.where, generation_prompt=False) for answer in answers]
    # An answer may be written otherwise than the generation prompt begins it (`<think>`): it starts where they part.
    start = len(os.path.commonprefix([asked, *whole]))  # noqa: RUF071 (of texts, letter by letter)
    if start < len(before):
        raise DataError(
            f"the chat template of {tokenizer.name_or_path} renders the prompt of {row.where} otherwise once an answer "
            "follows, so the answers cannot be told from it: give another template by --data.tokenizer_chat_template."
        )
    return _checked(_Texts(row, asked[:start], whole[0][start:], whole[1][start:]))


def _says_something(message: Mapping[str, Any]) -> bool:
    content = message["content"]
    return bool(content.strip() if isinstance(content, str) else content) or bool(message.get("tool_calls"))


def _checked(texts: _Texts) -> _Texts:
    if not texts.chosen.strip() or not texts.rejected.strip():
        raise Dropped("empty_response")
    if texts.chosen.strip() == texts.rejected.strip():
        raise Dropped("identical")
    if not texts.prompt:
        raise Dropped("empty_prompt")
    return texts._replace(chosen=texts.chosen.rstrip("\n"), rejected=texts.rejected.rstrip("\n"))


def _encoded(texts: Sequence[_Texts], tokenizer: PreTrainedTokenizerBase) -> list[list[list[int]]]:
    """Token ids of prompt, chosen and rejected of each."""
    if not texts:
        return []
    flat = encode(tokenizer, [text for each in texts for text in each[1:]], [t.row.where for t in texts for _ in "pcr"])
    return [flat[start : start + 3] for start in range(0, len(flat), 3)]


def _pair(
    pair_id: str,
    row: Row,
    ids: Sequence[list[int]],
    settings: PreferenceSettings,
    tokenizer: PreTrainedTokenizerBase,
    counts: Counter[str],
) -> PreferencePair:
    prompt, (chosen, rejected) = ids[0], (ended(answer, tokenizer) for answer in ids[1:])
    if chosen == rejected:
        raise Dropped("identical")
    limit = settings.max_tokens
    longest = max(len(chosen), len(rejected))
    if limit is not None and len(prompt) + longest > limit:
        check_overlong(row, len(prompt) + longest, limit, settings.overlong)
        room = room_for_prompt(len(prompt), longest, limit)
        space = limit - room
        if chosen[:space] == rejected[:space]:
            raise Dropped("identical_when_cut")
        counts["cut_prompts"] += room < len(prompt)
        counts["cut_responses"] += sum(len(answer) > space for answer in (chosen, rejected))
        prompt, chosen, rejected = ending(prompt, room, tokenizer), chosen[:space], rejected[:space]
    margin = _margin(row, settings.margin_key) if settings.margin_key is not None else 0.0
    return PreferencePair(pair_id, tuple(prompt), tuple(chosen), tuple(rejected), margin)


def _margin(row: Row, column: str) -> float:
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"{row.where}: column {column!r} (--data.margin_key) is {str(value)[:40]!r}, not a finite number."
        )
    return float(value)
