"""How many steps a run takes and what falls on them: the counts of the loops, without running them.

Steps are those of `data.source.PromptSource` and `trainers.supervised`, cadences those of `trainers.journal`, the
warm-up that of `engine.optimizer`; the tests run those and compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, combinations
from typing import Any

from openrlhf_ext.plan.types import Arithmetic, Setup


def arithmetic_of(setup: Setup) -> Arithmetic:
    """The arithmetic of a run from its first step to its last, without resuming.

    With dynamic filtering or failing rewards, RL may take fewer steps; checkpoints of evaluations that beat all before
    (ckpt.best_metric_key) come on top of `saves`. `evals` counts the one before the first step, and `logs` the lines
    of metrics. Warm-up and optimizer steps are the policy's in RL.
    """
    cfg = setup.config
    batch = rows_per_step(setup)
    rows = setup.data.rows
    tokens = _tokens_per_step(setup, batch)
    if rows is None:
        return Arithmetic(cfg.train.batch_size, *(None,) * 8, tokens_per_step=tokens)
    full, left = divmod(rows, batch)
    dropped = setup.command == "rl" and cfg.data.drop_last
    short = 0 if dropped else left
    passes = cfg.train.num_episodes if setup.command == "rl" else cfg.train.max_epochs
    steps = (full + bool(short)) * passes
    optimizer = _policy_steps(cfg, full, short) if setup.command == "rl" else steps
    return Arithmetic(
        effective_batch=cfg.train.batch_size,
        steps_per_epoch=full,
        leftover_rows=left,
        steps_total=steps,
        optimizer_steps=optimizer,
        warmup_steps=math.ceil(max(optimizer, 1) * _optimizer_of(setup).lr_warmup_ratio),
        saves=_saves(cfg, steps),
        evals=_evals(setup, steps),
        logs=_logs(setup, steps),
        tokens_per_step=tokens,
    )


def rows_per_step(setup: Setup) -> int:
    """Rows (prompts in RL, pairs in PM and DPO) that one step takes."""
    cfg = setup.config
    return int(cfg.rollout.batch_size if setup.command == "rl" else cfg.train.batch_size)


def sequences_per_row(setup: Setup) -> int:
    """A prompt has its samples, a pair its two answers."""
    if setup.command == "rl":
        return int(setup.config.rollout.n_samples_per_prompt)
    return 2 if setup.command in ("rm", "dpo") else 1


def fires(total: int, every: Sequence[int]) -> int:
    """On how many of the steps 1 to `total` something is due that happens every so many steps (a period of 0 or less:
    never) for any of the periods, and always on the last step."""
    if not total:
        return 0
    periods = [period for period in every if period > 0]
    groups = chain.from_iterable(combinations(periods, size) for size in range(1, len(periods) + 1))
    due = sum((-1) ** (len(group) + 1) * (total // math.lcm(*group)) for group in groups)
    return due + all(total % period for period in periods)


def evaluates(setup: Setup) -> bool:
    return setup.config.eval.dataset is not None or bool(setup.data.eval_rows)


def _policy_steps(cfg: Any, full: int, short: int) -> int:
    """Optimizer steps of the policy, which the critic's first steps are not."""

    def of_rows(rows: int) -> int:
        return math.ceil(rows * cfg.rollout.n_samples_per_prompt / cfg.train.batch_size) * cfg.train.max_epochs

    whole, last = of_rows(cfg.rollout.batch_size), of_rows(short)
    frozen = max(cfg.critic.freezing_steps, 0) if cfg.has_critic else 0
    epochs, steps = divmod(frozen, max(full + bool(short), 1))
    every = full * whole + last
    return max(every * (cfg.train.num_episodes - epochs) - steps * whole, 0)


def _optimizer_of(setup: Setup) -> Any:
    return setup.config.actor if setup.command == "rl" else setup.config


def _tokens_per_step(setup: Setup, batch: int) -> float | None:
    """Of a full step: whole sequences."""
    if setup.data.mean_tokens is None:
        return None
    rows = batch if setup.data.rows is None else min(batch, setup.data.rows)
    return rows * sequences_per_row(setup) * setup.data.mean_tokens


def _saves(cfg: Any, steps: int) -> int:
    written = not cfg.ckpt.disable_ds or cfg.ckpt.save_hf
    return fires(steps, [cfg.ckpt.save_steps]) if written else 0


def _evals(setup: Setup, steps: int) -> int:
    return 1 + fires(steps, [setup.config.eval.steps]) if evaluates(setup) else 0


def _logs(setup: Setup, steps: int) -> int:
    """A line is written where a step is logged, saved (also where no file is) or evaluated."""
    cfg = setup.config
    periods = [cfg.logger.logging_steps, cfg.ckpt.save_steps]
    if not evaluates(setup):
        return fires(steps, periods)
    return 1 + fires(steps, [*periods, cfg.eval.steps])
