"""Data: whether it can be read, has its columns, and what the model will see of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf_ext.cli.checks.finding import Finding, ok, warning
from openrlhf_ext.cli.checks.subject import Subject

if TYPE_CHECKING:
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
        yield from _columns_alone(area, dataset, split, limit, keys)
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


def _steps(subject: Subject, prompts: Sequence[Prompt]) -> Iterator[Finding]:
    """How many steps there will be, by the run's own source of prompts, which refuses too few of them."""
    from openrlhf_ext.data.source import PromptSource

    config = subject.config
    batch = config.rollout.batch_size
    source = PromptSource(
        prompts, batch_size=batch, episodes=config.train.num_episodes, drop_last=config.data.drop_last
    )
    subject.steps = source.total_steps
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
    config = subject.config
    limit, whole = _limit(dataset, config.data.max_samples)
    if subject.command == "sft" and subject.has_tokenizer:
        yield from _examples(subject, area, dataset, split, probs, limit, whole)
        return
    if subject.command == "sft":
        keys = {config.data.input_key: "--data.input_key", config.data.output_key: "--data.output_key"}
    else:
        keys = {
            config.data.prompt_key: "--data.prompt_key",
            config.data.chosen_key: "--data.chosen_key",
            config.data.rejected_key: "--data.rejected_key",
        }
    yield from _columns_alone(area, dataset, split, limit, keys)


def _examples(
    subject: Subject, area: str, dataset: str, split: str, probs: str | None, limit: int, whole: bool
) -> Iterator[Finding]:
    from dataclasses import replace

    from openrlhf_ext.cli.sft_run import sft_settings
    from openrlhf_ext.data.sft import load_sft

    config, tokenizer = subject.config, subject.tokenizer
    settings = replace(sft_settings(config, dataset, split, probs), max_samples=limit)
    loaded = load_sft(settings, tokenizer)
    counts = loaded.counts
    if area == AREA and whole:
        subject.steps = len(loaded.examples) // config.train.batch_size * config.train.max_epochs
    yield ok(
        area,
        f"{dataset}: {_seen(counts['rows'], whole)}, {counts['tokens']} tokens, {counts['learned_tokens']} learned",
    )
    for name, remedy in _LEFT_OUT.items():
        if counts.get(name):
            what = name.removeprefix("dropped_").replace("_", " ")
            yield warning(area, f"{counts[name]} of {counts['rows']} rows: {what}", remedy)
    for example in loaded.examples[:SHOWN]:
        given = [token for token, learned in zip(example.token_ids, example.action_mask, strict=True) if not learned]
        taught = [token for token, learned in zip(example.token_ids, example.action_mask, strict=True) if learned]
        texts = [_cut(repr(tokenizer.decode(part, skip_special_tokens=False))) for part in (given, taught)]
        yield ok(area, f"{len(example.token_ids)} tokens: {texts[0]}, learned: {texts[1]}")


_LEFT_OUT: Mapping[str, str] = {
    "truncated": "raise --data.max_len: the end is cut off, and with it EOS.",
    "dropped_overlong": "raise --data.max_len.",
    "dropped_prompt_too_long": "raise --data.max_len: there is no room for any of the response.",
    "dropped_empty_prompt": "fill the column of the prompt in, or leave those rows out.",
    "dropped_empty_response": "fill the column of the response in, or leave those rows out.",
    "dropped_eos_inside": "take the end-of-text token out of the responses.",
}


def _columns_alone(
    area: str, dataset: str, split: str, limit: int, keys: Mapping[str | None, str]
) -> Iterator[Finding]:
    """What can be said of rows without a tokenizer, or before there is a command for them."""
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


def _seen(rows: int, whole: bool) -> str:
    return f"{rows} rows" if whole else f"its first {rows} rows"


def _cut(text: str) -> str:
    """Its beginning and its end, where it is long: the ends hold the special tokens."""
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]} ... {text[-TAIL:]}"
