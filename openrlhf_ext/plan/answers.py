"""What the answers take that a model in training samples in its own evaluation (sft and dpo with --eval.scorer)."""

from __future__ import annotations

from typing import Any

from openrlhf_ext.plan.types import BYTES, ModelRun, Pass, Phase, Term

LOGITS = 4
"""Numbers of 4 bytes for each token of the vocabulary and each answer: its logits as they come and in float32, with
the noise that draws from them, and their sum."""


def prompts_of_answers(config: Any) -> Pass | None:
    """The pass of the prompts of as many answers as a rank samples at a time; None where none are sampled."""
    evaluation = config.eval
    if getattr(evaluation, "scorer", None) is None:
        return None
    rows, length = evaluation.answers_at_a_time, max(config.data.max_len - evaluation.max_new_tokens, 1)
    return Pass(rows, length, rows * length, selected=rows, backward=False)


def answers_of(config: Any, eval_rows: int) -> int:
    """Answers of one evaluation."""
    asked = min(eval_rows, config.eval.max_samples or eval_rows)
    return int(asked * config.eval.n_samples_per_prompt)


def answer_terms(run: ModelRun, prompts: Pass, answer: int) -> list[Term]:
    """The keys and values of prompts and answers, those of one layer twice (a token is added to a copy), and logits."""
    shape = run.shape
    layer = prompts.rows * (prompts.length + answer) * 2 * shape.kv_heads * shape.head_dim * BYTES[run.dtype]
    logits = prompts.rows * shape.vocab * 4 * LOGITS
    phase: frozenset[Phase] = frozenset({"evaluate"})
    return [
        Term(run.role, "keys and values of answers", (shape.layers + 1) * layer, "gpu", run.pool, phase),
        Term(run.role, "logits of answers", logits, "gpu", run.pool, phase),
    ]
