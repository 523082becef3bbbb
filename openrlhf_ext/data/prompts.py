"""Rows to prompts: template, tokens, a stable id, and a named rule for those that are too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from openrlhf_ext.data.chat import as_messages, check_chat_template, render_chat
from openrlhf_ext.data.tables import Row, content_id, load_rows, require_columns
from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE_COLUMN = "datasource"  # OpenRLHF's name for the column that says where a row is from

Overlong = Literal["refuse", "drop", "truncate_left"]


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """What `load_prompts` needs to know; the names are those of the `--data` flags."""

    dataset: str
    probs: tuple[float, ...] | None = None
    split: str = "train"
    input_key: str = "input"
    label_key: str | None = None
    input_template: str | None = None
    apply_chat_template: bool = False
    max_samples: int | None = None
    max_prompt_tokens: int | None = None
    overlong: Overlong = "refuse"
    seed: int = 42


@dataclass(frozen=True, slots=True)
class LoadedPrompts:
    """`counts`: rows, prompts, and of those that were too long `overlong_dropped`, `overlong_truncated`. `rows` are
    those of the prompts, one for each."""

    prompts: list[Prompt]
    counts: Mapping[str, int]
    rows: list[Row]


def load_prompts(settings: PromptSettings, tokenizer: PreTrainedTokenizerBase) -> LoadedPrompts:
    """Read, render and tokenize the prompts of a data set or mixture.

    A row's label is its `label_key` column ("" without one, as in OpenRLHF), its source the column
    `datasource` or else the name of its data set, its meta all other columns. The text is the input
    through the chat template, or through `input_template`, or as it is; special tokens are those that
    the text spells, none is added. Raises DataError for rows or a tokenizer that cannot be used, and
    ConfigError for a template that takes no input.
    """
    if settings.apply_chat_template:
        check_chat_template(tokenizer)
    elif settings.input_template is not None:
        check_template(settings.input_template)
    rows = load_rows(
        settings.dataset,
        probs=settings.probs,
        split=settings.split,
        max_samples=settings.max_samples,
        seed=settings.seed,
    )
    columns = {settings.input_key: "--data.input_key"}
    if settings.label_key is not None:
        columns[settings.label_key] = "--data.label_key"
    require_columns(rows, columns)

    texts = [_render(row, settings, tokenizer) for row in rows]
    tokens = tokenizer(texts, add_special_tokens=False)["input_ids"]
    counts = Counter(rows=len(rows))
    seen: Counter[str] = Counter()
    prompts, kept = [], []
    for row, text, ids in zip(rows, texts, tokens, strict=True):
        if not ids:
            raise DataError(f"{row.where}: column {settings.input_key!r} gives a prompt without any token.")
        # before the long ones are dropped, so that an id does not depend on the length limit
        label = row[settings.label_key] if settings.label_key is not None else ""
        prompt_id = content_id([_source(row), row[settings.input_key], label], seen)
        fitted = _fit(ids, text, row, settings, tokenizer, counts)
        if fitted is not None:
            prompts.append(_prompt(prompt_id, *fitted, label, row, settings))
            kept.append(row)
    if not prompts:
        raise DataError(
            f"all {len(rows)} prompts of {settings.dataset} are longer than {settings.max_prompt_tokens} tokens "
            "and were dropped: allow longer prompts, or truncate them."
        )
    counts["prompts"] = len(prompts)
    return LoadedPrompts(prompts, dict(counts), kept)


def check_template(template: str) -> None:
    """Raise ConfigError unless `template` takes exactly the input, as `{}`."""
    mark = "\x00input\x00"
    try:
        rendered = template.format(mark)
    except (KeyError, IndexError, ValueError):
        rendered = ""
    if mark not in rendered:
        raise ConfigError(
            f"--data.input_template {template!r} must hold {{}} where the input goes "
            "(and {{ or }} for a brace of its own)."
        )


def _render(row: Row, settings: PromptSettings, tokenizer: PreTrainedTokenizerBase) -> str:
    value = row[settings.input_key]
    if settings.apply_chat_template:
        messages = as_messages(value, row.where, settings.input_key)
        return render_chat(tokenizer, messages, row.where, generation_prompt=True)
    if not isinstance(value, str):
        raise DataError(
            f"{row.where}: column {settings.input_key!r} is {type(value).__name__}, not text; "
            "messages need --data.apply_chat_template."
        )
    return settings.input_template.format(value) if settings.input_template else value


def _fit(
    ids: Sequence[int],
    text: str,
    row: Row,
    settings: PromptSettings,
    tokenizer: PreTrainedTokenizerBase,
    counts: Counter[str],
) -> tuple[tuple[int, ...], str] | None:
    """Token ids and text of a prompt under the rule for over-long ones; None if it is dropped."""
    limit = settings.max_prompt_tokens
    if limit is None or len(ids) <= limit:
        return tuple(ids), text
    if settings.overlong == "drop":
        counts["overlong_dropped"] += 1
        return None
    if settings.overlong == "truncate_left":
        counts["overlong_truncated"] += 1
        kept = list(ids[-limit:])  # the end holds the question and the generation prompt
        return tuple(kept), str(tokenizer.decode(kept, skip_special_tokens=False))
    raise DataError(
        f"{row.where} has a prompt of {len(ids)} tokens, more than the {limit} that fit: allow longer prompts, "
        "or choose to drop or to truncate the over-long ones."
    )


def _source(row: Row) -> str:
    return str(row.values.get(SOURCE_COLUMN) or row.source)


def _prompt(prompt_id: str, ids: tuple[int, ...], text: str, label: Any, row: Row, settings: PromptSettings) -> Prompt:
    value = row[settings.input_key]
    messages = as_messages(value, row.where, settings.input_key) if settings.apply_chat_template else ()
    used = {settings.input_key, settings.label_key, SOURCE_COLUMN}
    meta = {name: value for name, value in row.values.items() if name not in used}
    return Prompt(prompt_id, ids, text, label, _source(row), meta, messages)
