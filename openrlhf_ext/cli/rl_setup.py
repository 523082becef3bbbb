"""From the rl command's config to the values of each floor: data, rewards, roles, driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openrlhf_ext.cli.rl_agent import environment
from openrlhf_ext.cli.rl_judge import RunJudge
from openrlhf_ext.cli.rl_student import student_source
from openrlhf_ext.cli.specs import split_settings
from openrlhf_ext.config import RLConfig
from openrlhf_ext.data.prompts import PromptSettings
from openrlhf_ext.data.tables import parse_probs
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.models.load import load_config
from openrlhf_ext.ops.advantage import AdvantageSettings
from openrlhf_ext.ops.length_penalty import LengthPenalties
from openrlhf_ext.ops.mismatch import CorrectionSettings
from openrlhf_ext.ops.policy_loss import PolicyLossSettings
from openrlhf_ext.rewards.load import RoleSource
from openrlhf_ext.rewards.model import ModelSource
from openrlhf_ext.trainers.objectives import PolicyObjective, ValueObjective
from openrlhf_ext.trainers.rl import RLSettings
from openrlhf_ext.types import Sampling, derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_settings(cfg: RLConfig, dataset: str, split: str, probs: str | None, max_samples: int) -> PromptSettings:
    return PromptSettings(
        dataset=dataset,
        probs=parse_probs(probs),
        split=split,
        input_key=cfg.data.input_key,
        label_key=cfg.data.label_key,
        input_template=cfg.data.input_template,
        apply_chat_template=cfg.data.apply_chat_template,
        max_samples=max_samples,
        max_prompt_tokens=cfg.data.max_len - (cfg.rollout.max_new_tokens or 1),
        overlong=cfg.data.overlong_prompt,
        seed=cfg.train.seed,
    )


def role_sources(cfg: RLConfig, tokenizer: PreTrainedTokenizerBase, judge: RunJudge | None = None) -> list[RoleSource]:
    """The models on the cluster that reward, in the order of their weights. Raises DataError as they do."""
    models: list[RoleSource | None] = [
        environment(cfg),
        reward_model(cfg, tokenizer),
        student_source(cfg, tokenizer),
        judge.source if judge else None,
    ]
    return [model for model in models if model is not None]


def reward_model(cfg: RLConfig, tokenizer: PreTrainedTokenizerBase) -> ModelSource | None:
    """The reward model as a source of rewards, where there is one. Raises DataError for a tokenizer that is no use."""
    path = cfg.reward.model_name_or_path
    if path is None:
        return None
    own = load_tokenizer(path, fast=not cfg.data.disable_fast_tokenizer)
    longest = getattr(load_config(path).get_text_config(), "max_position_embeddings", None)
    return ModelSource(
        path,
        own,
        tokenizer,
        max_tokens=longest or cfg.data.max_len,
        templated=cfg.data.apply_chat_template,
    )


def sampling_of(cfg: RLConfig) -> Sampling:
    """How training samples; the driver gives every step its own seed."""
    rollout = cfg.rollout
    return Sampling(
        n=rollout.n_samples_per_prompt,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_p=rollout.min_p,
        max_new_tokens=longest_answer(cfg),
        max_total_tokens=cfg.data.max_len,
        stop=rollout.stop,
    )


def eval_sampling(cfg: RLConfig) -> Sampling:
    """How evaluation samples: the same draws every time, so that two evaluations are paired."""
    return Sampling(
        n=cfg.eval.n_samples_per_prompt,
        temperature=cfg.eval.temperature,
        max_new_tokens=longest_answer(cfg),
        max_total_tokens=cfg.data.max_len,
        stop=cfg.rollout.stop,
        seed=derive_seed(cfg.train.seed, "evaluation"),
    )


def rl_settings(cfg: RLConfig, tokenizer: PreTrainedTokenizerBase) -> RLSettings:
    train, kl = cfg.train, cfg.algo.kl
    budget = train.max_tokens_per_gpu if train.dynamic_batch_enable else None
    return RLSettings(
        seed=train.seed,
        pad_id=tokenizer.pad_token_id,
        sampling=sampling_of(cfg),
        split=split_settings(train.micro_batch_size, budget, packed=cfg.ds.packing_samples),
        batch_size=train.batch_size,
        objective=objective_of(cfg),
        value_objective=ValueObjective(cfg.critic.value_clip) if cfg.has_critic else None,
        freezing_steps=max(cfg.critic.freezing_steps, 0),
        epochs=train.max_epochs,
        advantage=advantage_settings(cfg),
        length_penalties=length_penalties(cfg),
        filter_range=cfg.algo.dynamic_filtering_range if cfg.algo.dynamic_filtering_enable else None,
        kl_estimator=kl.estimator,
        kl_target=kl.target,
        kl_horizon=kl.horizon,
        ref_every=cfg.ref.sync_steps,
        ref_mixup=cfg.ref.sync_mixup,
        max_lag=train.async_queue_size if train.async_enable else 0,
        partial=train.partial_rollout_enable,
    )


def advantage_settings(cfg: RLConfig) -> AdvantageSettings:
    advantage, kl = cfg.algo.advantage, cfg.algo.kl
    return AdvantageSettings(
        estimator=advantage.estimator,
        gamma=advantage.gamma,
        kl_coef=0.0 if kl.use_loss else kl.init_coef,
        reward_clip=cfg.reward.clip_range,
        std_norm=not advantage.no_std_norm,
        lambd=advantage.lambd,
        norm=advantage.norm,
    )


def length_penalties(cfg: RLConfig) -> LengthPenalties | None:
    reward = cfg.reward
    if reward.overlong_buffer_len is None and reward.stop_properly_penalty_coef is None:
        return None
    return LengthPenalties(
        max_new_tokens=longest_answer(cfg),
        overlong_buffer=reward.overlong_buffer_len,
        overlong_factor=reward.overlong_penalty_factor,
        stop_properly=reward.stop_properly_penalty_coef,
    )


def longest_answer(cfg: RLConfig) -> int:
    """Tokens; prompt and answer together are bounded by data.max_len."""
    return cfg.rollout.max_new_tokens or cfg.data.max_len


def objective_of(cfg: RLConfig) -> PolicyObjective:
    actor, kl = cfg.actor, cfg.algo.kl
    low, high = actor.eps_clip_low_high or (actor.eps_clip, actor.eps_clip)
    return PolicyObjective(
        loss=PolicyLossSettings(actor.policy_loss_type, low, high, actor.dual_clip),
        # The ratio of gspo belongs to the sequence, and so does its mean.
        aggregation="seq-mean-token-mean" if actor.policy_loss_type == "gspo" else actor.loss_agg_mode,
        max_tokens=longest_answer(cfg),
        correction=correction_of(cfg),
        kl_coef=kl.init_coef if kl.use_loss else 0.0,
        kl_estimator=kl.estimator,
        kl_unbiased=kl.unbiased_gradient,
        entropy_coef=actor.entropy_coef,
        temperature=cfg.rollout.temperature,
    )


def correction_of(cfg: RLConfig) -> CorrectionSettings | None:
    """The correction of the mismatch of trainer and sampler, where there is one."""
    advantage = cfg.algo.advantage
    if advantage.is_correction_level == "off":
        return None
    *low, high = advantage.is_correction_threshold
    return CorrectionSettings(
        level=advantage.is_correction_level,
        mode=advantage.is_correction_mode,
        gating=advantage.is_correction_gating,
        low=low[0] if low else 0.0,
        high=high,
    )
