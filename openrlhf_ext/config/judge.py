"""The flags of the judge, a language model that scores answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from openrlhf_ext.config.fields import flag

PROMPT_ROOM = 2048
"""Tokens for the rubric and what a row has beside the conversation that is judged."""


@dataclass(frozen=True, slots=True)
class JudgeSection:
    model_name_or_path: str | None = flag(None, "the judge: a Hugging Face folder or hub name", common=True)
    url: str | None = flag(
        None, "an OpenAI-compatible endpoint in its place, the address before /chat/completions", common=True
    )
    served_model_name: str | None = flag(None, "the endpoint's name of the model")
    api_key: str | None = flag(None, "the endpoint's key (not set: OPENAI_API_KEY of the environment)", secret=True)
    prompt: str | None = flag(
        None, "rubric file (YAML) by which it rewards (not set: it answers reward files only)", common=True
    )
    mode: Literal["pointwise", "pairwise"] = flag(
        "pointwise", "it sees one answer at a time, or two of one prompt in both orders"
    )
    max_pairs: int | None = flag(None, "pairs of a prompt's answers that are compared (not set: all)")
    n_samples: int = flag(1, "verdicts asked for at a time, which vote")
    temperature: float = flag(0.0, "sampling temperature of its answers")
    max_new_tokens: int = flag(256, "tokens of its longest answer")
    max_len: int | None = flag(
        None, "tokens of its longest question and answer (not set: room for what data.max_len allows and a rubric)"
    )
    cache: str | None = flag(
        None, 'folder in which its answers are kept (not set: judge_cache in ckpt.output_dir; "off": none)'
    )
    num_engines: int = flag(1, "its inference engines")
    tensor_parallel_size: int = flag(1, "GPUs of one of them")
    gpu_memory_utilization: float = flag(0.2, "part of a GPU's memory one of them may take")
    enable_sleep: bool = flag(False, "give the GPU's memory back between scorings (with train.colocate_all)")
    enforce_eager: bool = flag(False, "no compiled graphs")
    kv_cache_gb: float = flag(0.25, "GB of an engine's cache on a CPU")
    threads: int | None = flag(None, "threads of an engine on a CPU (not set: the cores shared evenly)")
    concurrency: int = flag(16, "requests to the endpoint at a time")
    timeout_s: float = flag(60.0, "seconds one request to the endpoint may take")
    max_retries: int = flag(5, "requests after the first that failed")


def longest_judgement(config: Any, positions: int | None) -> int:
    """Tokens of a judge's longest question and answer, within what its model reads. `config`: of the rl command."""
    judge = config.judge
    shown = config.data.max_len * (2 if judge.mode == "pairwise" else 1)
    wanted = judge.max_len or shown + PROMPT_ROOM + judge.max_new_tokens
    return int(min(wanted, positions or wanted))


def questions_of_a_prompt(config: Any) -> int:
    """What a judge is asked about the answers to one prompt: each of them, or pairs of them in both orders."""
    judge, answers = config.judge, config.rollout.n_samples_per_prompt
    pairs = math.comb(answers, 2)
    looks = answers if judge.mode == "pointwise" else 2 * min(judge.max_pairs or pairs, pairs)
    return int(looks * judge.n_samples)
