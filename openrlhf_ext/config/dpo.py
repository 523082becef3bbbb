"""The flags of `openrlhf-ext dpo`, with the names, types and defaults of OpenRLHF 0.11.2's train_dpo."""

# ruff: noqa: RUF009 (`flag` and `section` are dataclasses.field with a help text)

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from openrlhf_ext.config.fields import flag, section
from openrlhf_ext.config.sections import AdamSection, CkptSection, DsSection, LoggerSection, WandbSection
from openrlhf_ext.config.supervised import (
    AnsweredEvalSection,
    ModelFields,
    PairsDataSection,
    PairsTrainSection,
    SupervisedFields,
)

ReferenceStrategy = Literal["auto", "base", "adapter", "cached", "quantised", "offloaded", "model"]


@dataclass(frozen=True, slots=True)
class DPOModelSection(ModelFields):
    beta: float = flag(0.1, "how strongly the policy is held near the reference", common=True)
    ipo_enable: bool = flag(False, "IPO's squared loss (arXiv:2310.12036)")
    hinge_enable: bool = flag(False, "the hinge loss of SLiC (arXiv:2305.10425)")
    label_smoothing: float = flag(0.0, "probability that a pair is labelled the wrong way round (cDPO)")
    nll_loss_coef: float = flag(0.0, "weight of the negative log-likelihood of the chosen answers")
    length_normalize: bool = flag(False, "log-probs are means over an answer's tokens instead of sums")


@dataclass(frozen=True, slots=True)
class DPORefSection:
    model_name_or_path: str | None = flag(None, "the reference (not set: the model as it is before training)")
    offload: bool = flag(False, "keep the reference's parameters in host memory (ref.strategy offloaded)")
    strategy: ReferenceStrategy = flag(
        "auto",
        "where the reference's log-probs come from: the base under new adapters, a frozen copy of the adapters that "
        "training goes on from, computed once and kept on disk, a second model in 4 bits, on the host, or as it is",
        common=True,
    )
    cache_dir: str | None = flag(
        None, "folder of the cached log-probs (not set: reference_logprobs beside ckpt.output_dir)"
    )


@dataclass(frozen=True, slots=True)
class DPOConfig(SupervisedFields):
    """`openrlhf-ext dpo`: direct preference optimisation."""

    adam: AdamSection = section(partial(AdamSection, lr=1e-5), "AdamW")
    model: DPOModelSection = section(DPOModelSection, "the model and its loss")
    ref: DPORefSection = section(DPORefSection, "the reference")
    data: PairsDataSection = section(PairsDataSection, "pairs and their columns")
    train: PairsTrainSection = section(partial(PairsTrainSection, micro_batch_size=8), "batches and epochs")
    ds: DsSection = section(DsSection, "DeepSpeed, number formats, kernels")
    eval: AnsweredEvalSection = section(partial(AnsweredEvalSection, split="test"), "held-out evaluation")
    ckpt: CkptSection = section(
        partial(CkptSection, path="./ckpt/checkpoints_dpo", max_mem=1e8), "checkpoints and exports"
    )
    logger: LoggerSection = section(partial(LoggerSection, wandb=WandbSection(project="openrlhf_train_dpo")), "metrics")
