"""Rows to supervised examples: the tokens of a text, and which of them are learned.

Prompt and response are tokenized apart, so that the tokens before a response are the very ones that a
policy is later asked to continue. The response ends in EOS exactly once, which is learned; what a chat
template writes after it (a line end) is cut off, for generation stops at EOS.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openrlhf_ext.data.chat import Segments, as_messages, assistant_segments, check_chat_template
from openrlhf_ext.data.dropped import Dropped, DroppedRow, Overlong, by_reason, check_overlong, require_some
from openrlhf_ext.data.prompts import check_template
from openrlhf_ext.data.tables import Row, content_id, load_rows, require_columns
from openrlhf_ext.data.tokens import encode, ended, ending, room_for_prompt, text_of
from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.types import RolloutKey

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class SftSettings:
    """What `load_sft` needs to know; the names are those of the `--data` flags.

    `pretrain`: every token of the input column is learned, as plain text without template or EOS.
    `overlong`, of a row of more than `max_tokens`: what is before its last response loses its beginning, and the
    response its end only where half of `max_tokens` is not enough for it (`truncate_left`, as pairs are cut); or the
    row loses its end, is left out, or is an error.
    """

    dataset: str
    probs: tuple[float, ...] | None = None
    split: str = "train"
    input_key: str = "input"
    output_key: str | None = None
    input_template: str | None = None
    apply_chat_template: bool = False
    multiturn: bool = False
    pretrain: bool = False
    max_samples: int | None = None
    max_tokens: int | None = None
    overlong: Overlong = "truncate_left"
    seed: int = 42


@dataclass(frozen=True, slots=True)
class SftExample:
    """T tokens; `action_mask[t]` says that token t is learned. The first token never is."""

    id: str
    token_ids: tuple[int, ...]
    action_mask: tuple[bool, ...]

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.action_mask), "unequal lengths"
        assert not self.action_mask[0] and any(self.action_mask), "something is learned, the first token never"

    @property
    def key(self) -> RolloutKey:
        return RolloutKey(self.id, 0)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Nobody sampled these tokens."""
        return (0.0,) * len(self.token_ids)


@dataclass(frozen=True, slots=True)
class LoadedSft:
    """`counts`: rows, examples, cut_prompts, cut_responses (which then have no EOS), tokens, learned_tokens, and
    `dropped_REASON` for rows left out: overlong, prompt_too_long (cut at the right, no response would be left),
    empty_prompt, empty_response, eos_inside (the response spells EOS before its end). `dropped` names each of
    those rows."""

    examples: list[SftExample]
    counts: Mapping[str, int]
    dropped: Sequence[DroppedRow] = ()


def load_sft(settings: SftSettings, tokenizer: PreTrainedTokenizerBase) -> LoadedSft:
    """Read, render, tokenize and mask the rows of a data set or mixture.

    Three forms: `input_key` and `output_key` as texts around `input_template`; the same two as messages;
    or the whole conversation in `input_key`. With a chat template the last assistant turn is learned, with
    `multiturn` every one of them: by the template's own `{% generation %}` blocks where it has them, else
    by what each turn adds to the rendered text. Raises DataError for rows, tokenizer or template that
    cannot be used and if no row is left, ConfigError for settings that contradict each other.
    """
    _check(settings, tokenizer)
    rows = load_rows(
        settings.dataset,
        probs=settings.probs,
        split=settings.split,
        max_samples=settings.max_samples,
        seed=settings.seed,
    )
    columns = {settings.input_key: "--data.input_key"}
    if settings.output_key is not None and not settings.pretrain:
        columns[settings.output_key] = "--data.output_key"
    require_columns(rows, columns)

    counts: Counter[str] = Counter(rows=len(rows))
    seen: Counter[str] = Counter()
    examples = []
    dropped: list[DroppedRow] = []
    for row in rows:
        row_id = content_id([row.source, *(row[column] for column in columns)], seen)
        try:
            example = SftExample(row_id, *_fit(*_tokenized(row, settings, tokenizer), row, settings, tokenizer, counts))
        except Dropped as reason:
            dropped.append(DroppedRow.of(row, reason))
            continue
        examples.append(example)
        counts["tokens"] += len(example.token_ids)
        counts["learned_tokens"] += sum(example.action_mask)
    require_some(rows, dropped, settings.dataset)
    counts["examples"] = len(examples)
    return LoadedSft(examples, {**counts, **by_reason(dropped)}, dropped)


def _check(settings: SftSettings, tokenizer: PreTrainedTokenizerBase) -> None:
    if settings.pretrain:
        return
    if settings.apply_chat_template:
        check_chat_template(tokenizer)
        return
    if settings.multiturn:
        raise ConfigError("--data.multiturn needs --data.apply_chat_template, which tells the turns apart.")
    if settings.output_key is None:
        raise ConfigError(
            "--data.output_key is not given, so there is no response to learn: name its column, give conversations "
            "with --data.apply_chat_template, or learn plain text with --model.pretrain_mode_enable."
        )
    if settings.input_template is not None:
        check_template(settings.input_template)


def _tokenized(row: Row, settings: SftSettings, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Token ids and action mask of a row, of any length."""
    if settings.pretrain:
        (ids,) = encode(tokenizer, [text_of(row, settings.input_key)], [row.where])
        if len(ids) < 2:
            raise Dropped("empty_prompt" if not ids else "empty_response")
        return ids, [False] + [True] * (len(ids) - 1)
    if not settings.apply_chat_template:
        assert settings.output_key is not None
        prompt = text_of(row, settings.input_key)
        prompt = settings.input_template.format(prompt) if settings.input_template else prompt
        response = text_of(row, settings.output_key).removesuffix(str(tokenizer.eos_token))
        if not response.strip():
            raise Dropped("empty_response")
        return _masked([(prompt, False), (response, True)], row, tokenizer)

    messages = _conversation(row, settings)
    if not messages[-1]["content"] and not messages[-1].get("tool_calls"):
        raise Dropped("empty_response")
    template = str(tokenizer.chat_template)
    if settings.multiturn and tokenizer.is_fast and GENERATION_BLOCK.search(template):
        return _by_generation_blocks(messages, row, tokenizer)
    segments = assistant_segments(tokenizer, messages, row.where, every_turn=settings.multiturn)
    return _masked(segments, row, tokenizer)


def _conversation(row: Row, settings: SftSettings) -> list[dict[str, Any]]:
    messages = as_messages(row[settings.input_key], row.where, settings.input_key)
    if settings.output_key is not None:
        output = row[settings.output_key]
        output = [output] if isinstance(output, Mapping) else output
        messages = messages + as_messages(output, row.where, settings.output_key, role="assistant")
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{row.where}: the conversation ends with the role {messages[-1]['role']!r}, so there is no response to "
            "learn: end it with an assistant message, or name the response's column with --data.output_key."
        )
    return messages


def _masked(segments: Segments, row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Tokens of the segments (text, learned), the last of which is learned and gets its one EOS."""
    eos = tokenizer.eos_token_id
    ids: list[int] = []
    mask: list[bool] = []
    texts = [text for text, _ in segments]
    texts[-1] = texts[-1].rstrip("\n")
    encoded = encode(tokenizer, texts, [row.where] * len(texts))
    for number, (part, (_, learned)) in enumerate(zip(encoded, segments, strict=True)):
        end = len(part)
        if learned and (number == len(segments) - 1 or eos in part):
            end = len(whole := ended(part, tokenizer))
            if number == len(segments) - 1:
                part = whole
        ids += part
        mask += [learned and position < end for position in range(len(part))]
    if mask[0]:
        raise Dropped("empty_prompt")
    return ids, mask


def _by_generation_blocks(
    messages: Sequence[dict[str, Any]], row: Row, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool]]:
    rendered: Any = tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = list(rendered["input_ids"]), [bool(m) for m in rendered["assistant_masks"]]
    if not any(mask):
        raise DataError(
            f"{row.where}: the {{% generation %}} blocks in the chat template of {tokenizer.name_or_path} mark no "
            "token of this conversation: mend the template, or give one with --data.tokenizer_chat_template."
        )
    if mask[0]:
        raise Dropped("empty_prompt")
    end = len(mask) - mask[::-1].index(True)
    eos = tokenizer.eos_token_id
    if ids[end - 1] == eos:
        return ids[:end], mask[:end]
    return [*ids[:end], eos], [*mask[:end], True]  # the template has EOS after its block, or writes none


def _fit(
    ids: list[int],
    mask: list[bool],
    row: Row,
    settings: SftSettings,
    tokenizer: PreTrainedTokenizerBase,
    counts: Counter[str],
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The row under the rule for over-long ones."""
    limit = settings.max_tokens
    if limit is None or len(ids) <= limit:
        return tuple(ids), tuple(mask)
    check_overlong(row, len(ids), limit, settings.overlong)
    if settings.overlong == "truncate_right":
        if not any(mask[:limit]):
            raise Dropped("prompt_too_long")
        counts["cut_responses"] += 1
        return tuple(ids[:limit]), tuple(mask[:limit])
    start = _last_response(mask)
    room = room_for_prompt(start, len(ids) - start, limit)
    counts["cut_prompts"] += room < start
    counts["cut_responses"] += len(ids) - start > limit - room
    # Where the prompt begins within an earlier answer, that answer's first token has nothing to be learned from.
    learned = [False, *mask[start - room + 1 : start]]
    return (
        (*ending(ids[:start], room, tokenizer), *ids[start : start + limit - room]),
        (*learned, *mask[start : start + limit - room]),
    )


def _last_response(mask: Sequence[bool]) -> int:
    """Where the last stretch of learned tokens begins."""
    last = len(mask) - 1 - mask[::-1].index(True)
    before = [token for token in range(last) if not mask[token]]
    return before[-1] + 1
