"""Data: whether it can be read, has its columns, and what the model will see of it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from openrlhf_ext.cli.checks.finding import Finding, ok, warning
from openrlhf_ext.cli.checks.subject import NotThereError, Subject
from openrlhf_ext.data.tables import Row
from openrlhf_ext.plan.types import DataSize
from openrlhf_ext.types import Prompt

AREA, EVALUATION = "data", "evaluation data"
FIRST_ROWS = 256
WHOLE_BYTES = 4_000_000
"""Files of this size in all are read and tokenized whole, in a second or two; of larger ones the first rows are."""
SHOWN = 2
HEAD, TAIL = 200, 80


def find_rows(subject: Subject) -> Iterator[Finding]:
    data = subject.config.data
    try:
        if not (data.prompt_dataset if subject.command == "rl" else data.dataset):
            raise NotThereError("a data set")
        if subject.command == "rl":
            yield from _prompts(subject, AREA, data.prompt_dataset, data.prompt_split, data.prompt_probs)
        else:
            yield from _supervised(subject, AREA, data.dataset, data.dataset_split, data.dataset_probs)
    finally:
        subject.settle_prompts(())


def find_evaluation_rows(subject: Subject) -> Iterator[Finding]:
    evaluation = subject.config.eval
    if evaluation.dataset is None:
        return
    if subject.command == "rl":
        yield from _prompts(subject, EVALUATION, evaluation.dataset, evaluation.split, None)
    else:
        yield from _supervised(subject, EVALUATION, evaluation.dataset, evaluation.split, None)


def _limit(dataset: str, most: int) -> tuple[int, bool]:
    """How many rows to look at, and whether those are all."""
    paths = [Path(part.partition("@")[0].strip()).expanduser() for part in dataset.split(",")]
    sizes = [path.stat().st_size if path.is_file() else WHOLE_BYTES + 1 for path in paths]
    whole = sum(sizes) <= WHOLE_BYTES
    return (most, True) if whole or most <= FIRST_ROWS else (FIRST_ROWS, False)


def _prompts(subject: Subject, area: str, dataset: str, split: str, probs: str | None) -> Iterator[Finding]:
    from openrlhf_ext.cli.rl_setup import prompt_settings
    from openrlhf_ext.data.prompts import load_prompts

    config = subject.config
    limit, whole = _limit(dataset, config.data.max_samples)
    if not subject.has_tokenizer:
        keys = {config.data.input_key: "--data.input_key", config.data.label_key: "--data.label_key"}
        rows = yield from _columns_alone(area, dataset, split, limit, keys)
        if area == AREA:
            subject.settle_prompts([_untokenized(row, config.data) for row in rows[:SHOWN]])
        return
    loaded = load_prompts(prompt_settings(config, dataset, split, probs, limit), subject.tokenizer)
    prompts, counts = loaded.prompts, loaded.counts
    if area == AREA:
        subject.settle_prompts(prompts[:SHOWN])
        if whole:
            yield from _steps(subject, prompts)
    longest = max(len(prompt.token_ids) for prompt in prompts)
    yield ok(area, f"{dataset}: {_seen(counts['rows'], whole)}, prompts of up to {longest} tokens")
    for name, what in {"overlong_dropped": "dropped", "overlong_truncated": "cut at the left"}.items():
        if counts.get(name):
            yield warning(
                area,
                f"{counts[name]} of {counts['rows']} prompts are longer than the room for them and will be {what}",
                "raise --data.max_len, or lower --rollout.max_new_tokens.",
            )
    yield from _labels(subject, area, prompts)
    yield from _beginning(subject, area, prompts)
    for prompt in prompts[:SHOWN]:
        text = str(subject.tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False))
        label = f"; label {_cut(repr(prompt.label))}" if config.data.label_key else ""
        yield ok(area, f"{len(prompt.token_ids)} tokens: {_cut(repr(text))}{label}")


def _untokenized(row: Row, data: Any) -> Prompt:
    """As far as a reward file can be tried with it."""
    used = {data.input_key, data.label_key}
    meta = {name: value for name, value in row.values.items() if name not in used}
    label = row[data.label_key] if data.label_key is not None else ""
    return Prompt(row.where, (), str(row[data.input_key]), label, row.source, meta)


def _steps(subject: Subject, prompts: Sequence[Prompt]) -> Iterator[Finding]:
    """How many steps there will be, by the run's own source of prompts, which refuses too few of them."""
    from openrlhf_ext.cli.rl_setup import longest_answer
    from openrlhf_ext.data.source import PromptSource

    config = subject.config
    batch = config.rollout.batch_size
    source = PromptSource(
        prompts, batch_size=batch, episodes=config.train.num_episodes, drop_last=config.data.drop_last
    )
    lengths = [len(prompt.token_ids) for prompt in prompts]
    room, mean = config.data.max_len, sum(lengths) / len(lengths)
    with_answer = min(mean + longest_answer(config), room)
    subject.data = DataSize(len(prompts), with_answer, room, mean, how="counted")
    yield ok(AREA, f"{len(prompts)} prompts make {source.steps_per_epoch} rollout steps an episode")
    if len(prompts) < batch:
        yield warning(
            AREA,
            f"{len(prompts)} prompts are fewer than one batch of {batch} (--rollout.batch_size)",
            f"give more prompts, or --rollout.batch_size {len(prompts)}.",
        )


def _labels(subject: Subject, area: str, prompts: Sequence[Prompt]) -> Iterator[Finding]:
    key, sources = subject.config.data.label_key, subject.config.reward.remote_url
    if not sources:
        return
    if key is None:
        columns = sorted({name for prompt in prompts[:SHOWN] for name in prompt.meta})
        there = f" (other columns: {', '.join(columns)})" if columns else ""
        yield warning(
            area,
            f"no column is named for the labels, so the reward gets an empty one for every prompt{there}",
            "give --data.label_key, unless the reward needs none.",
        )
    elif empty := sum(prompt.label in (None, "", []) for prompt in prompts):
        yield warning(
            area,
            f"{empty} of {len(prompts)} labels in column {key!r} are empty",
            "fill them in, or leave those rows out.",
        )


def _beginning(subject: Subject, area: str, prompts: Sequence[Prompt]) -> Iterator[Finding]:
    """A model that was trained with a token at the start of every text."""
    tokenizer = subject.tokenizer
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("a")["input_ids"][:1] != [bos]:
        return
    lacking = sum(prompt.token_ids[0] != bos for prompt in prompts)
    if lacking:
        yield warning(
            area,
            f"{lacking} of {len(prompts)} prompts do not begin with {tokenizer.bos_token}, which this tokenizer puts "
            "before every text",
            f"give --data.apply_chat_template, or begin --data.input_template with {tokenizer.bos_token}.",
        )


def _supervised(subject: Subject, area: str, dataset: str, split: str, probs: str | None) -> Iterator[Finding]:
    data = subject.config.data
    limit, whole = _limit(dataset, data.max_samples)
    if not subject.has_tokenizer:
        if subject.command == "sft":
            keys = {data.input_key: "--data.input_key", data.output_key: "--data.output_key"}
        else:
            keys = {key: f"--data.{name}" for name in PAIR_KEYS if (key := getattr(data, name))}
        yield from _columns_alone(area, dataset, split, limit, keys)
        return
    load = _examples if subject.command == "sft" else _pairs
    counts, lengths, shown = load(subject, dataset, split, probs, limit)
    if area == AREA and whole:
        mean = sum(lengths) / len(lengths)
        rows = counts["rows"] - sum(count for name, count in counts.items() if name.startswith("dropped_"))
        subject.data = DataSize(rows, mean, max(lengths), how="counted")
    yield ok(area, f"{dataset}: {_seen(counts['rows'], whole)}, sequences of up to {max(lengths)} tokens")
    for name, count in counts.items():
        if count and name.startswith(("dropped_", "cut_", "truncated")):
            what = name.removeprefix("dropped_").replace("_", " ")
            remedy = LENGTH if name in _LENGTHS else "correct those rows, or leave them out."
            yield warning(area, f"{count} of {counts['rows']} rows: {what}", remedy)
    for length, texts in shown:
        parts = [f"{what}{_cut(repr(subject.tokenizer.decode(ids)))}" for what, ids in texts]
        yield ok(area, f"{length} tokens: {', '.join(parts)}")


Loaded = tuple[Mapping[str, int], list[int], list[tuple[int, list[tuple[str, list[int]]]]]]
"""Counts, the length of every sequence, and the first rows: their length and tokens, part by part."""


def _examples(subject: Subject, dataset: str, split: str, probs: str | None, limit: int) -> Loaded:
    from openrlhf_ext.cli.supervised_rows import sft_settings
    from openrlhf_ext.data.sft import load_sft

    settings = replace(sft_settings(subject.config, dataset, split, probs), max_samples=limit)
    loaded = load_sft(settings, subject.tokenizer)
    shown = []
    for example in loaded.examples[:SHOWN]:
        tokens = list(zip(example.token_ids, example.action_mask, strict=True))
        given, learned = ([token for token, mask in tokens if mask is part] for part in (False, True))
        shown.append((len(tokens), [("", given), ("learned: ", learned)]))
    return loaded.counts, [len(example.token_ids) for example in loaded.examples], shown


def _pairs(subject: Subject, dataset: str, split: str, probs: str | None, limit: int) -> Loaded:
    from openrlhf_ext.cli.supervised_rows import dpo_settings, rm_settings
    from openrlhf_ext.data.preferences import load_preferences

    settings = (rm_settings if subject.command == "rm" else dpo_settings)(subject.config, dataset, split, probs)
    settings = replace(settings, max_samples=limit)
    loaded = load_preferences(settings, subject.tokenizer)
    lengths = [len(side.token_ids) for pair in loaded.pairs for side in (pair.chosen, pair.rejected)]
    shown = []
    for pair in loaded.pairs[:SHOWN]:
        parts = [("", list(pair.prompt_ids)), ("chosen: ", list(pair.chosen_ids))]
        parts.append(("rejected: ", list(pair.rejected_ids)))
        shown.append((sum(len(ids) for _, ids in parts), parts))
    return loaded.counts, lengths, shown


PAIR_KEYS = ("prompt_key", "chosen_key", "rejected_key")
LENGTH = "raise --data.max_len, if the machine has room for it."
_LENGTHS = ("truncated", "cut_prompts", "cut_responses", "dropped_overlong", "dropped_prompt_too_long")


def _columns_alone(
    area: str, dataset: str, split: str, limit: int, keys: Mapping[str | None, str]
) -> Generator[Finding, None, list[Row]]:
    """The rows, and what can be said of them without a tokenizer."""
    from openrlhf_ext.data.tables import load_rows, require_columns

    rows = load_rows(dataset, split=split, max_samples=limit)
    columns = {key: flag for key, flag in keys.items() if key is not None}
    require_columns(rows, columns)
    yield ok(area, f"{dataset}: the first {len(rows)} rows have the columns {', '.join(columns)}")
    for key in columns:
        empty = sum(not row[key] for row in rows)
        if empty:
            yield warning(
                area, f"{empty} of {len(rows)} rows have nothing in column {key!r}", "fill them in, or leave them out."
            )
    for row in rows[:SHOWN]:
        yield ok(area, ", ".join(f"{key} {_cut(repr(row[key]))}" for key in columns))
    return rows


def _seen(rows: int, whole: bool) -> str:
    return f"{rows} rows" if whole else f"its first {rows} rows"


def _cut(text: str) -> str:
    """Its beginning and its end, where it is long: the ends hold the special tokens."""
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]} ... {text[-TAIL:]}"
