"""Traps of steps, intervals and rows. A step is an optimizer step, in RL a rollout step."""

from __future__ import annotations

import math

from openrlhf_ext.condition import Condition, parse_condition
from openrlhf_ext.config.rules.stopping import FLAG, LESS_IS_BETTER, figure_meant
from openrlhf_ext.plan.answers import answers_of
from openrlhf_ext.plan.traps.case import Case, Trap

LONG_RUN = 500
"""Steps from which on a run without checkpoints is worth a word."""
FORWARD_PART = 1 / 3
"""Of a step's work that is its forward pass: a backward pass is two of them."""
RATES = ("accuracy", "pass@1")
"""Figures that are parts of the held-out rows."""
MUCH_CHANCE = 0.03
"""A standard error of a rate that is too much to stop by."""


def save_interval_beyond_run(case: Case) -> str | None:
    every, steps = case.config.ckpt.save_steps, case.arithmetic.steps_total
    if steps is None or every <= steps:
        return None
    return f"--ckpt.save_steps {every} of a run of {_steps(steps)}: no checkpoint before the end; give {_half(steps)}."


def evaluation_interval_beyond_run(case: Case) -> str | None:
    every, steps = case.config.eval.steps, case.arithmetic.steps_total
    if steps is None or every <= steps:
        return None
    return f"--eval.steps {every} of a run of {_steps(steps)}: no evaluation before the end; give {_half(steps)}."


def reference_never_follows(case: Case) -> str | None:
    every, steps = case.config.ref.sync_steps if case.rl else 0, case.arithmetic.steps_total
    if steps is None or every <= steps:
        return None
    return f"--ref.sync_steps {every} of a run of {_steps(steps)}: the reference stays as it is; give {_half(steps)}."


def logging_interval_beyond_run(case: Case) -> str | None:
    every, steps = case.config.logger.logging_steps, case.arithmetic.steps_total
    if steps is None or every <= steps:
        return None
    return f"--logger.logging_steps {every} of a run of {_steps(steps)}: one line of metrics, at the end; give 1."


def nothing_to_resume_from(case: Case) -> str | None:
    ckpt, steps = case.config.ckpt, case.arithmetic.steps_total
    if steps is None or steps < LONG_RUN or ckpt.save_steps > 0:
        return None
    return (
        f"--ckpt.save_steps -1 of a run of {_steps(steps)}: what is killed before the end begins anew; give "
        f"{steps // 10}."
    )


def checkpoints_not_evaluated(case: Case) -> str | None:
    """The interval of evaluation does not divide that of checkpoints."""
    save, evaluate, steps = case.config.ckpt.save_steps, case.config.eval.steps, case.arithmetic.steps_total
    if save < 1 or evaluate < 1 or save % evaluate == 0 or (steps is not None and max(save, evaluate) > steps):
        return None
    fitting = max(number for number in range(1, min(save, evaluate) + 1) if save % number == 0)
    return (
        f"--eval.steps {evaluate} does not divide --ckpt.save_steps {save}: only every {math.lcm(save, evaluate)} "
        f"steps is a checkpoint evaluated, so the others cannot be told apart; give --eval.steps {fitting}."
    )


def best_is_the_last(case: Case) -> str | None:
    if not case.rl or case.config.ckpt.best_metric_key in ("", "none") or case.config.eval.steps > 0:
        return None
    return (
        f"--ckpt.best_metric_key {case.config.ckpt.best_metric_key} without --eval.steps: there is one evaluation, at "
        "the end, so the best checkpoint is the last; give --eval.steps."
    )


def goal_is_to_be_worse(case: Case) -> str | None:
    goal = _goal(case)
    if goal is None or (figure := figure_meant(goal, case.config)) is None:
        return None
    if goal.wants_more != (figure in LESS_IS_BETTER) or figure not in (*LESS_IS_BETTER, *RATES):
        return None
    better = "<=" if goal.wants_more else ">="
    return f"{FLAG} {goal}: that is a worse {figure}, not a better one; give {goal.metric}{better}{goal.target:g}."


def goal_of_few_rows(case: Case) -> str | None:
    """A run asks again and again whether it is there, and the first time that chance says so counts."""
    goal, rows = _goal(case), case.data.eval_rows
    if goal is None or not rows or figure_meant(goal, case.config) not in RATES or not 0 < goal.target < 1:
        return None
    chance = math.sqrt(goal.target * (1 - goal.target) / rows)
    if chance <= MUCH_CHANCE:
        return None
    enough = math.ceil(goal.target * (1 - goal.target) / MUCH_CHANCE**2)
    return (
        f"{FLAG} {goal} is asked of {rows} rows, of which chance alone moves a rate by {chance:.2f} (one standard "
        f"error) at every evaluation: the run may end by luck; hold out {enough} rows."
    )


def evaluation_dearer_than_training(case: Case) -> str | None:
    data, evals = case.data, case.arithmetic.evals
    if not (data.rows and data.eval_rows and evals):
        return None
    if case.rl:
        each = data.eval_rows * case.config.eval.n_samples_per_prompt
        trained = data.rows * case.config.train.num_episodes * case.answers_per_row
        dear, what = evals * each > trained, f"{evals * each} answers, training samples {trained}"
    else:
        trained = data.rows * case.config.train.max_epochs
        if (dearer := _answers_dearer(case, evals)) is not None:
            return dearer
        dear = evals * data.eval_rows * FORWARD_PART > trained
        what = f"{evals * data.eval_rows} rows forward, training {trained} rows forward and backward"
    if not dear:
        return None
    return f"{evals} evaluations take {what}: give a larger --eval.steps, or fewer held-out rows."


def _answers_dearer(case: Case, evals: int) -> str | None:
    """Of the model in training, which samples token by token what it learns in one pass."""
    data, config = case.data, case.config
    if case.trained.answers is None or not (data.rows and data.eval_rows and data.mean_tokens):
        return None
    sampled = evals * answers_of(config, data.eval_rows) * config.eval.max_new_tokens
    trained = data.rows * config.train.max_epochs * data.mean_tokens
    if sampled <= trained:
        return None
    return (
        f"{evals} evaluations sample up to {sampled:,} tokens one after the other, training reads {trained:,.0f} at "
        "once: give a larger --eval.steps, a smaller --eval.max_samples, or checkpoints to openrlhf-ext eval, which "
        "samples many times as fast."
    )


def evaluation_on_training_rows(case: Case) -> str | None:
    config = case.config
    trained = (config.data.prompt_dataset, config.data.prompt_split) if case.rl else (
        config.data.dataset, config.data.dataset_split)  # fmt: skip
    if config.eval.dataset is None or (config.eval.dataset, config.eval.split) != trained:
        return None
    return (
        f"--eval.dataset {config.eval.dataset} is evaluated on the split that is trained on, {config.eval.split}: the "
        "figures will flatter; give another --eval.split or --eval.dataset."
    )


def warmup_takes_the_run(case: Case) -> str | None:
    warmup, steps = case.arithmetic.warmup_steps, case.arithmetic.optimizer_steps
    if not warmup or not steps or 2 * warmup <= steps or case.optimizer.lr_scheduler == "constant":
        return None
    flag = f"{case.optimizer_flag}lr_warmup_ratio"
    ratio = case.optimizer.lr_warmup_ratio
    if warmup >= steps:
        # The rate is zero in the first step of a warm-up.
        return f"{flag} {ratio:g}: all of the {_steps(steps)} warm up, from a learning rate of 0; give {flag} 0."
    return f"{flag} {ratio:g}: {warmup} of the {_steps(steps)} warm up; give {flag} 0.03."


def warmup_without_effect(case: Case) -> str | None:
    path = "actor.lr_warmup_ratio" if case.rl else "lr_warmup_ratio"
    if case.optimizer.lr_scheduler != "constant" or path not in case.explicit or not case.optimizer.lr_warmup_ratio:
        return None
    return (
        f"--{path} {case.optimizer.lr_warmup_ratio:g} has no effect with {case.optimizer_flag}lr_scheduler constant; "
        "give constant_with_warmup."
    )


def no_warmup(case: Case) -> str | None:
    steps = case.arithmetic.optimizer_steps
    if case.optimizer.lr_warmup_ratio > 0 or case.optimizer.lr_scheduler.startswith("constant"):
        return None
    if steps is None or steps < 100:  # in a short run every step counts
        return None
    flag = f"{case.optimizer_flag}lr_warmup_ratio"
    return f"{flag} 0: Adam's first steps, which know no second moment yet, are taken at the full rate; give 0.03."


def batch_larger_than_data(case: Case) -> str | None:
    rows, batch = case.data.rows, case.config.rollout.batch_size if case.rl else case.config.train.batch_size
    if not rows or rows >= batch:
        return None
    flag = "--rollout.batch_size" if case.rl else "--train.batch_size"
    return (
        f"{flag} {batch} is more than the {rows} rows there are: an epoch is one short step; give {max(1, rows // 8)}."
    )


def short_last_step(case: Case) -> str | None:
    left, rows = case.arithmetic.leftover_rows, case.data.rows
    batch = case.config.rollout.batch_size if case.rl else case.config.train.batch_size
    if not left or not rows or left * 8 > batch or rows < batch or (case.rl and case.config.data.drop_last):
        return None
    remedy = "--data.drop_last" if case.rl else f"--data.max_samples {rows - left}"
    are = "row is" if left == 1 else "rows are"
    return (
        f"{left} {are} left for the last step of an epoch, which moves the weights as far as one of {batch}: give "
        f"{remedy} to leave them out."
    )


def rows_left_out(case: Case) -> str | None:
    rows, most = case.data.rows, case.config.data.max_samples
    if rows is None or rows < most or "data.max_samples" in case.explicit:
        return None
    return f"--data.max_samples is {most} by default: rows after that are left out; give a larger one to train on all."


def answers_leave_no_room(case: Case) -> str | None:
    mean = case.data.mean_prompt_tokens
    if not case.rl or mean is None or case.config.rollout.max_new_tokens is None:
        return None
    room = case.config.data.max_len - case.config.rollout.max_new_tokens
    if mean <= 0.8 * room:
        return None
    return (
        f"--rollout.max_new_tokens {case.config.rollout.max_new_tokens} leaves prompts {room} tokens of --data.max_len "
        f"{case.config.data.max_len}, and they have {mean:.0f} on average: many are left out; raise --data.max_len."
    )


def rows_are_cut(case: Case) -> str | None:
    mean = case.data.mean_tokens
    if case.rl or mean is None or mean < 0.9 * case.config.data.max_len:
        return None
    return (
        f"Rows have {mean:.0f} tokens on average within --data.max_len {case.config.data.max_len}: most are cut, or "
        "left out; raise it."
    )


def _goal(case: Case) -> Condition | None:
    text = case.config.train.stop_when
    return None if text is None else parse_condition(text)


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"


def _half(steps: int) -> int:
    return max(1, steps // 2)


SCHEDULE: tuple[Trap, ...] = (
    save_interval_beyond_run,
    evaluation_interval_beyond_run,
    reference_never_follows,
    logging_interval_beyond_run,
    nothing_to_resume_from,
    checkpoints_not_evaluated,
    best_is_the_last,
    goal_is_to_be_worse,
    goal_of_few_rows,
    evaluation_dearer_than_training,
    evaluation_on_training_rows,
    warmup_takes_the_run,
    warmup_without_effect,
    no_warmup,
    batch_larger_than_data,
    short_last_step,
    rows_left_out,
    answers_leave_no_room,
    rows_are_cut,
)
