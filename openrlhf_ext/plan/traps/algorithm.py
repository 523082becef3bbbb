"""Traps of sampling and of the algorithm (rl)."""

from __future__ import annotations

from openrlhf_ext.plan.traps.case import Case, Trap


def sampled_from_a_cut_distribution(case: Case) -> str | None:
    if not case.rl:
        return None
    rollout = case.config.rollout
    cut = [
        f"--rollout.{name} {getattr(rollout, name):g}"
        for name, whole in (("top_p", 1.0), ("top_k", -1), ("min_p", 0.0))
        if getattr(rollout, name) != whole
    ]
    if not cut:
        return None
    return (
        f"{' and '.join(cut)}: answers come from a cut distribution, and log-probs, KL and ratios are of the whole "
        "one; leave it out, and give --rollout.temperature instead."
    )


def answers_nearly_alike(case: Case) -> str | None:
    if not case.rl or case.config.rollout.temperature >= 0.3:
        return None
    return (
        f"--rollout.temperature {case.config.rollout.temperature:g}: answers to a prompt are nearly alike, and there "
        "is little to prefer among them; give 0.7 to 1."
    )


def evaluated_answers_alike(case: Case) -> str | None:
    if not case.rl or case.config.eval.dataset is None:
        return None
    evaluation = case.config.eval
    if evaluation.temperature > 0 or evaluation.n_samples_per_prompt == 1:
        return None
    return (
        f"--eval.temperature 0 gives the same answer {evaluation.n_samples_per_prompt} times; give "
        "--eval.n_samples_per_prompt 1."
    )


def policy_never_learns(case: Case) -> str | None:
    steps = case.arithmetic.steps_total
    if not case.rl or not case.config.has_critic or steps is None or case.config.critic.freezing_steps < steps:
        return None
    return (
        f"--critic.freezing_steps {case.config.critic.freezing_steps} of a run of {steps} steps: the critic learns and "
        f"the policy never does; give {max(steps // 10, 0)}."
    )


def stale_rollouts_uncorrected(case: Case) -> str | None:
    if not case.rl or case.config.algo.advantage.is_correction_level != "off":
        return None
    train, rollout = case.config.train, case.config.rollout
    ahead = train.async_queue_size if train.async_enable else 0
    rounds = -(-(rollout.vllm_generate_batch_size or rollout.batch_size) // rollout.batch_size)
    behind = ahead + rounds - 1
    if behind < 2:
        return None
    flag = "--train.async_queue_size" if ahead else "--rollout.vllm_generate_batch_size"
    return (
        f"{flag} trains on answers of weights up to {behind} steps old; give --algo.advantage.is_correction_level "
        "token."
    )


def no_kl_in_a_long_run(case: Case) -> str | None:
    steps = case.arithmetic.optimizer_steps
    if not case.rl or case.config.algo.kl.init_coef > 0 or not case.config.has_reward_model or not steps or steps < 100:
        return None
    return (
        "--algo.kl.init_coef 0 with a reward model: over "
        f"{steps} optimizer steps nothing holds the policy where the model's scores mean something; give 0.01."
    )


ALGORITHM: tuple[Trap, ...] = (
    sampled_from_a_cut_distribution,
    answers_nearly_alike,
    evaluated_answers_alike,
    policy_never_learns,
    stale_rollouts_uncorrected,
    no_kl_in_a_long_run,
)
