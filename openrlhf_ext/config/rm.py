"""The flags of `openrlhf-ext rm`, with the names, types and defaults of OpenRLHF 0.11.2's train_rm."""

# ruff: noqa: RUF009 (`flag` and `section` are dataclasses.field with a help text)

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from openrlhf_ext.config.fields import flag, section
from openrlhf_ext.config.sections import AdamSection, CkptSection, LoggerSection, ValueHeadDsSection, WandbSection
from openrlhf_ext.config.supervised import ModelFields, PairsDataSection, PairsTrainSection, SupervisedFields


@dataclass(frozen=True, slots=True)
class RMModelSection(ModelFields):
    loss_type: Literal["sigmoid", "logexp", "general"] = flag(
        "sigmoid", "preference loss (general: the general preference model, with a head of even dimension)", common=True
    )
    margin_loss_enable: bool = flag(False, "subtract the row's margin (data.margin_key) from the difference of scores")
    compute_fp32_loss_enable: bool = flag(
        False, "the loss in float32", refused="the loss is computed in float32 always"
    )
    centring_coef: float = flag(0.0, "weight of the squared sum of a pair's scores, which keeps them around zero")
    temperature: float = flag(1.0, "the difference of scores is divided by it")
    head_dim: int = flag(1, "numbers the head gives (general: an even number)")


@dataclass(frozen=True, slots=True)
class RMDataSection(PairsDataSection):
    margin_key: str = flag("margin", "column of the margin (model.margin_loss_enable)")


@dataclass(frozen=True, slots=True)
class RMConfig(SupervisedFields):
    """`openrlhf-ext rm`: a preference model, which is a reward model trained on pairs."""

    adam: AdamSection = section(partial(AdamSection, lr=9e-6), "AdamW")
    model: RMModelSection = section(RMModelSection, "the model and its loss")
    data: RMDataSection = section(RMDataSection, "pairs and their columns")
    train: PairsTrainSection = section(PairsTrainSection, "batches and epochs")
    ds: ValueHeadDsSection = section(ValueHeadDsSection, "DeepSpeed, number formats, kernels")
    ckpt: CkptSection = section(
        partial(CkptSection, path="./ckpt/checkpoints_rm", max_mem=1e8), "checkpoints and exports"
    )
    logger: LoggerSection = section(partial(LoggerSection, wandb=WandbSection(project="openrlhf_train_rm")), "metrics")
