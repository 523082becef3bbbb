"""The rows that `eval` asks, as prompts of an engine or messages to an endpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openrlhf_ext.cli.eval_model import TokenPair, Weights
from openrlhf_ext.config import Parsed
from openrlhf_ext.config.evaluation import EvalConfig
from openrlhf_ext.data.chat import as_messages
from openrlhf_ext.data.prompts import SOURCE_COLUMN, PromptSettings, check_template, load_prompts
from openrlhf_ext.data.tables import Row, content_id, load_rows, require_columns
from openrlhf_ext.data.tokens import encode
from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.evaluation.asked import AskedRow, Columns, asked_rows
from openrlhf_ext.models.load import load_config
from openrlhf_ext.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Asked:
    """`longest`: tokens that the engine must have room for in one sequence. `references`: prompt and reference of each
    row in tokens, where log-likelihoods are asked for. `counts`: of rows that were left out or cut.
    """

    rows: list[AskedRow]
    longest: int = 0
    references: list[TokenPair] = field(default_factory=list)
    counts: Mapping[str, int] = field(default_factory=dict)


def rows_for_engine(parsed: Parsed, weights: Weights, tokenizer: PreTrainedTokenizerBase) -> Asked:
    """Raises DataError for rows that cannot be asked, ConfigError for lengths that the model does not have."""
    cfg: EvalConfig = parsed.config
    data = cfg.data
    assert data.dataset is not None
    limit = _longest_allowed(parsed, weights.path)
    answer = cfg.eval.max_new_tokens if cfg.generates else 1
    if limit <= answer:
        raise ConfigError(
            f"--eval.max_new_tokens {answer}: {weights.path} has {limit} positions for prompt and answer; give less."
        )
    loaded = load_prompts(
        PromptSettings(
            dataset=data.dataset,
            split=data.split,
            input_key=data.input_key,
            label_key=data.label_key,
            input_template=data.input_template,
            apply_chat_template=data.apply_chat_template,
            max_samples=data.max_samples,
            max_prompt_tokens=limit - answer,
            overlong=data.overlong_prompt,
        ),
        tokenizer,
    )
    rows = asked_rows(loaded.rows, loaded.prompts, _columns(cfg, loaded.rows))
    longest = max(len(prompt.token_ids) for prompt in loaded.prompts) + answer
    references: list[TokenPair] = []
    if cfg.eval.perplexity:
        references = _references(rows, tokenizer, limit)
        # vLLM samples a token behind what it is given.
        longest = max(longest, *(len(prompt) + len(reference) + 1 for prompt, reference in references))
    dropped = {name: n for name, n in loaded.counts.items() if name.startswith("overlong")}
    return Asked(rows, longest, references, dropped)


def rows_for_endpoint(cfg: EvalConfig) -> Asked:
    """Messages as the rows have them, or the text as a user's one message. Raises DataError as `load_rows` does."""
    data = cfg.data
    assert data.dataset is not None
    rows = load_rows(data.dataset, split=data.split, max_samples=data.max_samples)
    columns = _columns(cfg, rows)
    require_columns(rows, {data.input_key: "--data.input_key"})
    if data.input_template is not None:
        check_template(data.input_template)
    seen: Counter[str] = Counter()
    return Asked(asked_rows(rows, [_sent(cfg, row, seen) for row in rows], columns))


def _sent(cfg: EvalConfig, row: Row, seen: Counter[str]) -> Prompt:
    data = cfg.data
    value = row[data.input_key]
    if isinstance(value, str) and data.input_template is not None:
        value = data.input_template.format(value)
    messages = as_messages(value, row.where, data.input_key)
    label = row[data.label_key] if data.label_key is not None else ""
    source = str(row.values.get(SOURCE_COLUMN) or row.source)
    used = {data.input_key, data.label_key, SOURCE_COLUMN}
    meta = {name: value for name, value in row.values.items() if name not in used}
    text = str(messages[0]["content"]) if len(messages) == 1 else ""
    return Prompt(content_id([source, row[data.input_key], label], seen), (), text, label, source, meta, messages)


def _columns(cfg: EvalConfig, rows: Sequence[Row]) -> Columns:
    """Raises DataError for a column that no row has, or of label and context that a row lacks."""
    data = cfg.data
    groups = cfg.groups
    flags = dict.fromkeys(groups, "--eval.group_by")
    if cfg.eval.subject_column is not None:
        flags[cfg.eval.subject_column] = "--eval.subject_column"
    for column, flag in flags.items():
        if column != "source" and not any(column in row.values for row in rows):
            there = ", ".join(map(str, rows[0].values))
            raise DataError(f"no row has the column {column!r} ({flag}); the columns there are: {there}.")
    needed = {data.label_key: "--data.label_key", data.context_key: "--data.context_key"}
    require_columns(rows, {column: flag for column, flag in needed.items() if column is not None})
    return Columns(data.input_key, data.label_key, data.context_key, tuple(flags))


def _longest_allowed(parsed: Parsed, path: str) -> int:
    cfg: EvalConfig = parsed.config
    positions = getattr(load_config(path).get_text_config(), "max_position_embeddings", None)
    asked = cfg.data.max_len
    if asked is not None and positions is not None and positions < asked:
        raise ConfigError(f"--data.max_len {asked}: {path} has {positions} positions; give that or less.")
    return int(asked or positions or 1 << 20)


def _references(rows: Sequence[AskedRow], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[TokenPair]:
    """Tokenized apart from the prompt, as answers in training are; without an end."""
    texts = [_first(row) for row in rows]
    tokens = encode(tokenizer, texts, [row.where for row in rows])
    found: list[TokenPair] = []
    for row, reference in zip(rows, tokens, strict=True):
        prompt = row.prompt.token_ids
        if len(prompt) + len(reference) >= limit:
            raise DataError(
                f"{row.where}: prompt and reference have {len(prompt) + len(reference)} tokens, and {limit - 1} fit "
                "for --eval.perplexity: leave the row out, or raise --data.max_len."
            )
        found.append((prompt, reference))
    return found


def _first(row: AskedRow) -> str:
    label: Any = row.prompt.label
    label = label[0] if isinstance(label, list | tuple) and label else label
    if label is None or not str(label):
        raise DataError(f"{row.where} has no reference answer (--data.label_key), which --eval.perplexity measures.")
    return str(label)
