"""How many rows and tokens a command would train on: as given, estimated from a sample, or counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from openrlhf_ext.cli.plan_rows import Look, look_at
from openrlhf_ext.data.tables import parse_probs
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.types import DataSize

BYTES_PER_TOKEN = 4.0
"""Of English text under vocabularies of 100,000 tokens and more. Code and numbers have fewer bytes (about 3), so their
tokens are underestimated; Chinese, at 3 bytes a character, has about as many."""
TURN_TOKENS = 5
"""What a chat template writes around one message: begin, role, end and line ends."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What of the `data` section says where rows come from."""

    dataset: str | None
    split: str
    probs: tuple[float, ...] | None
    limit: int


def data_size(
    command: str, config: Any, rows: int | None = None, mean_tokens: float | None = None, tokenize: bool = False
) -> DataSize:
    """The size of the command's data: `rows` and `mean_tokens` where they are given, else from the data set it names.

    Tokens are those of one sequence: a pair has two of them. In RL they are a prompt's and its longest answer's,
    unless they are given. Where `tokenize` is asked for it raises what the loaders raise, and ConfigError
    without a data set.
    """
    asked, longest = _training_data(command, config), int(config.data.max_len)
    size = DataSize(None, None, longest)
    if tokenize:
        if asked.dataset is None:
            raise ConfigError("--plan.tokenize: there is nothing to tokenize; name the data set.")
        from openrlhf_ext.cli.plan_tokens import counted

        size = counted(command, config)
    elif rows is None or mean_tokens is None:
        size = _estimated(command, config, asked)
    if rows is not None:
        size = replace(size, rows=min(rows, asked.limit), how="given" if size.how == "unknown" else size.how)
    if mean_tokens is not None:
        prompt = size.mean_prompt_tokens and min(size.mean_prompt_tokens, mean_tokens)
        size = replace(size, mean_tokens=min(mean_tokens, longest), mean_prompt_tokens=prompt)
    held_out = _Asked(config.eval.dataset, config.eval.split, None, asked.limit)
    return replace(size, eval_rows=_rows_of(held_out)[0])


def _training_data(command: str, config: Any) -> _Asked:
    data = config.data
    if command == "rl":
        return _Asked(data.prompt_dataset, data.prompt_split, parse_probs(data.prompt_probs), data.max_samples)
    return _Asked(data.dataset, data.dataset_split, parse_probs(data.dataset_probs), data.max_samples)


def _estimated(command: str, config: Any, asked: _Asked) -> DataSize:
    longest = int(config.data.max_len)
    rows, looks = _rows_of(asked)
    tokens: list[tuple[float, list[float]]] = []
    for look in looks:
        measured = [t for row in look.sample for t in _tokens_of_row(command, config, row)]
        tokens.append((float(look.rows), measured))
    weights = asked.probs or [weight for weight, _ in tokens]
    known = [(weight, fmean(measured)) for weight, (_, measured) in zip(weights, tokens) if measured]
    if not known:
        return DataSize(rows, None, longest, how="unknown" if rows is None else "estimated")
    mean = sum(weight * value for weight, value in known) / sum(weight for weight, _ in known)
    if command == "rl":
        return DataSize(rows, min(mean + longest_answer(config), longest), longest, mean, how="estimated")
    return DataSize(rows, mean, longest, how="estimated")


def longest_answer(config: Any) -> int:
    """Tokens, as `cli.rl_setup.longest_answer`; those of an episode of several turns may fill all the room."""
    if config.has_agent:
        return int(config.data.max_len)
    return int(config.rollout.max_new_tokens or config.data.max_len)


def _rows_of(asked: _Asked) -> tuple[int | None, list[Look]]:
    """Rows of all sources together; None where one of them cannot be looked at."""
    specs = [spec.strip() for spec in (asked.dataset or "").split(",") if spec.strip()]
    looks = [look_at(spec, asked.split, asked.limit) for spec in specs]
    seen = [look for look in looks if look is not None]
    if not specs or len(seen) < len(specs):
        return None, seen
    if asked.probs is None or len(asked.probs) != len(seen):
        rows = sum(look.rows for look in seen)
    else:  # interleaved at random until each source has been seen whole: about as long as the slowest takes
        rows = round(max(look.rows / share for look, share in zip(seen, asked.probs)))
    return min(rows, asked.limit), seen


def _tokens_of_row(command: str, config: Any, row: Mapping[str, Any]) -> list[float]:
    """Estimated tokens of each sequence that a row becomes (in RL: of its prompt); none where a column is missing."""
    data = config.data
    if command == "rl":
        prompt = _tokens_of([row.get(data.input_key)], data)
        limit = data.max_len - (config.rollout.max_new_tokens or 1)
        return [] if prompt is None else [min(prompt, limit)]
    if command == "sft":
        answered = data.output_key and not config.model.pretrain_mode_enable
        sequences = [[data.input_key, data.output_key] if answered else [data.input_key]]
    else:
        prompts = [data.prompt_key] if data.prompt_key else []
        sequences = [[*prompts, data.chosen_key], [*prompts, data.rejected_key]]
    tokens = [_tokens_of([row.get(key) for key in keys], data) for keys in sequences]
    return [min(each + 1, data.max_len) for each in tokens if each is not None]  # one more: the end of sequence


def _tokens_of(parts: Iterable[Any], data: Any) -> float | None:
    """Estimated tokens of texts or lists of messages, one after the other; None where one is neither."""
    tokens = 0.0
    template = len(data.input_template or "{}") - 2
    for part in parts:
        if isinstance(part, str):
            tokens += TURN_TOKENS if data.apply_chat_template else template / BYTES_PER_TOKEN
            texts = [part]
        elif isinstance(part, list) and all(isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in part):
            texts = [message["content"] for message in part]
            tokens += TURN_TOKENS * len(texts)
        else:
            return None
        template = 0  # it is around the first one
        tokens += sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / BYTES_PER_TOKEN
    return tokens
