"""From the `data` sections of sft, rm and dpo to what the loaders need to know."""

from __future__ import annotations

from typing import Any

from openrlhf_ext.config import DPOConfig, RMConfig, SFTConfig
from openrlhf_ext.data.preferences import PreferenceSettings
from openrlhf_ext.data.sft import SftSettings
from openrlhf_ext.data.tables import parse_probs


def sft_settings(cfg: SFTConfig, dataset: str, split: str, probs: str | None) -> SftSettings:
    return SftSettings(
        dataset=dataset,
        probs=parse_probs(probs),
        split=split,
        input_key=cfg.data.input_key,
        output_key=cfg.data.output_key,
        input_template=cfg.data.input_template,
        apply_chat_template=cfg.data.apply_chat_template,
        multiturn=cfg.data.multiturn,
        pretrain=cfg.model.pretrain_mode_enable,
        max_samples=cfg.data.max_samples,
        max_tokens=cfg.data.max_len,
        overlong=cfg.data.overlong,
        seed=cfg.train.seed,
    )


def rm_settings(cfg: RMConfig, dataset: str, split: str, probs: str | None) -> PreferenceSettings:
    margin = cfg.data.margin_key if cfg.model.margin_loss_enable else None
    return _pair_settings(cfg, dataset, split, probs, margin)


def dpo_settings(cfg: DPOConfig, dataset: str, split: str, probs: str | None) -> PreferenceSettings:
    return _pair_settings(cfg, dataset, split, probs, None)


def _pair_settings(cfg: Any, dataset: str, split: str, probs: str | None, margin: str | None) -> PreferenceSettings:
    return PreferenceSettings(
        dataset=dataset,
        probs=parse_probs(probs),
        split=split,
        prompt_key=cfg.data.prompt_key,
        chosen_key=cfg.data.chosen_key,
        rejected_key=cfg.data.rejected_key,
        margin_key=margin,
        input_template=cfg.data.input_template,
        apply_chat_template=cfg.data.apply_chat_template,
        max_samples=cfg.data.max_samples,
        max_tokens=cfg.data.max_len,
        differs_earlier=cfg.data.differs_earlier,
        overlong=cfg.data.overlong,
        seed=cfg.train.seed,
    )
