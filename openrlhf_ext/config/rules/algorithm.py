"""The rules of `rl` on the algorithm: estimator, loss, KL, correction, filtering, asynchrony, adapters."""

from __future__ import annotations

from collections.abc import Iterator

from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation

GROUP_ESTIMATORS = ("rloo", "reinforce_baseline", "group_norm", "dr_grpo")
DISCOUNTED = ("gae", "reinforce")


def groups_have_siblings(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    estimator = config.algo.advantage.estimator
    if estimator in GROUP_ESTIMATORS and config.rollout.n_samples_per_prompt < 2:
        yield Violation(
            "--algo.advantage.estimator",
            estimator,
            "it compares the answers of one prompt, and there is one; set --rollout.n_samples_per_prompt to 2 or more",
        )


def discount_is_possible(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    advantage = config.algo.advantage
    if advantage.gamma != 1.0 and advantage.estimator not in DISCOUNTED:
        yield Violation(
            "--algo.advantage.gamma",
            advantage.gamma,
            f"{advantage.estimator} gives every token of an answer the same advantage; leave it at 1.0",
        )


def normalisation_is_said_once(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    advantage = config.algo.advantage
    if advantage.no_std_norm and advantage.norm != "auto":
        yield Violation(
            "--algo.advantage.no_std_norm",
            None,
            f"--algo.advantage.norm {advantage.norm} decides; leave out one of them",
        )


def gspo_is_a_loss_of_sequences(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    mode = config.actor.loss_agg_mode
    asked = mode != "token-mean" or "actor.loss_agg_mode" in explicit
    if config.actor.policy_loss_type == "gspo" and asked and mode != "seq-mean-token-mean":
        yield Violation(
            "--actor.loss_agg_mode",
            mode,
            "--actor.policy_loss_type gspo weighs sequences; leave it out or set it to seq-mean-token-mean",
        )


def dual_clip_is_of_surrogates(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.actor.dual_clip is not None and config.actor.policy_loss_type == "cispo":
        yield Violation(
            "--actor.dual_clip",
            config.actor.dual_clip,
            "--actor.policy_loss_type cispo has none; leave out one of them",
        )


def only_a_weight_is_clipped(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    level, mode, gating, _ = _correction(config)
    if level == "off" or config.actor.policy_loss_type == "gspo":
        return
    if mode == "clip" and (level, gating) != ("token", "ratio"):
        yield Violation(
            "--algo.advantage.is_correction_mode",
            mode,
            "it cuts the weight of a token; set --algo.advantage.is_correction_level token and "
            "--algo.advantage.is_correction_gating ratio, or leave it at mask",
        )


def threshold_is_one_or_two_bounds(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    level, _, gating, bounds = _correction(config)
    flag = "--algo.advantage.is_correction_threshold"
    if level == "off" or config.actor.policy_loss_type == "gspo":
        return
    if gating != "ratio" and len(bounds) != 1:
        yield Violation(flag, bounds, f"{gating} has an upper bound only; give one number")
    elif len(bounds) not in (1, 2):
        yield Violation(flag, bounds, "it takes HIGH or LOW HIGH")
    elif not 0.0 <= (0.0, *bounds)[-2] < bounds[-1]:
        yield Violation(flag, bounds, "it takes HIGH, above 0, or LOW HIGH with 0 <= LOW < HIGH")


def gspo_corrects_by_its_own_ratio(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    level, mode, gating, bounds = _correction(config)
    if level == "off" or config.actor.policy_loss_type != "gspo":
        return
    given = {"mode": (mode, "mask"), "gating": (gating, "ratio"), "threshold": (bounds, (0.5, 5.0))}
    for name, (value, default) in given.items():
        if value != default:
            yield Violation(
                f"--algo.advantage.is_correction_{name}",
                value,
                "--actor.policy_loss_type gspo takes its ratio against the sampler itself, which no bound changes; "
                "leave it out",
            )


def _correction(config: RLConfig) -> tuple[str, str, str, tuple[float, ...]]:
    a = config.algo.advantage
    return a.is_correction_level, a.is_correction_mode, a.is_correction_gating, a.is_correction_threshold


def filtering_has_scores_to_compare(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.algo.dynamic_filtering_enable and config.rollout.n_samples_per_prompt < 2:
        yield Violation(
            "--algo.dynamic_filtering_enable",
            None,
            "a group is one answer; set --rollout.n_samples_per_prompt to 2 or more",
        )


def the_kl_weight_stays_above_zero(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    """One step moves it by at most a fifth of rollouts / horizon."""
    rollouts = config.rollout.batch_size * config.rollout.n_samples_per_prompt
    if config.algo.kl.target is not None and 0 < 5 * config.algo.kl.horizon <= rollouts:
        yield Violation(
            "--algo.kl.horizon",
            config.algo.kl.horizon,
            f"a step of {rollouts} rollouts could turn the weight of the KL to zero; give more than {rollouts // 5}",
        )


def generation_is_whole_batches(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    size, batch = config.rollout.vllm_generate_batch_size, config.rollout.batch_size
    if size is not None and size > 0 and batch > 0 and size % batch:
        below, above = size // batch * batch, (size // batch + 1) * batch
        yield Violation(
            "--rollout.vllm_generate_batch_size",
            size,
            f"it is no multiple of --rollout.batch_size {batch}; choose {f'{below} or ' if below else ''}{above}",
        )


def async_engines_stay_awake(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    if not config.train.async_enable:
        return
    for name in ("vllm", "ds"):
        if getattr(config, name).enable_sleep:
            yield Violation(
                f"--{name}.enable_sleep",
                None,
                "with --train.async_enable engines and models work at the same time; leave it out",
            )


def penalty_begins_within_the_answer(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    buffer, new = config.reward.overlong_buffer_len, config.rollout.max_new_tokens
    limit, flag = (config.data.max_len, "data.max_len") if new is None else (new, "rollout.max_new_tokens")
    if buffer is not None and buffer > limit:
        yield Violation("--reward.overlong_buffer_len", buffer, f"it is part of --{flag} {limit}; give that or less")


ALGORITHM_RULES: tuple[Rule, ...] = (
    groups_have_siblings,
    discount_is_possible,
    normalisation_is_said_once,
    gspo_is_a_loss_of_sequences,
    dual_clip_is_of_surrogates,
    only_a_weight_is_clipped,
    threshold_is_one_or_two_bounds,
    gspo_corrects_by_its_own_ratio,
    filtering_has_scores_to_compare,
    the_kl_weight_stays_above_zero,
    generation_is_whole_batches,
    async_engines_stay_awake,
    penalty_begins_within_the_answer,
)
