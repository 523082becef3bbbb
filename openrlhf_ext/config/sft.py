"""The flags of `openrlhf-ext sft`, with the names, types and defaults of OpenRLHF 0.11.2's train_sft."""

# ruff: noqa: RUF009 (`flag` and `section` are dataclasses.field with a help text)

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from openrlhf_ext.config.fields import flag, section
from openrlhf_ext.config.sections import (
    AdamSection,
    CkptSection,
    DsSection,
    LoggerSection,
    WandbSection,
)
from openrlhf_ext.config.supervised import (
    AnsweredEvalSection,
    ModelFields,
    RowsFields,
    SupervisedFields,
    SupervisedTrainFields,
)


@dataclass(frozen=True, slots=True)
class SFTModelSection(ModelFields):
    pretrain_mode_enable: bool = flag(False, "learn the prompt's tokens too")


@dataclass(frozen=True, slots=True)
class SFTDataSection(RowsFields):
    input_key: str = flag("input", "column of the prompt", common=True)
    input_template: str | None = flag("User: {}\nAssistant: ", "text around the prompt, with {} where it goes")
    output_key: str | None = flag(
        None, "column of the answer (not set: the input holds the whole conversation)", common=True
    )
    overlong: Literal["truncate_left", "truncate_right", "drop", "refuse"] = flag(
        "truncate_left",
        "rows of more than data.max_len: cut what is before the last response at its left (the response's end only "
        "where half of the room is not enough for it), cut at the right (OpenRLHF's way), leave them out, or stop",
    )
    multiturn: bool = flag(False, "learn every assistant turn (with data.apply_chat_template)")


@dataclass(frozen=True, slots=True)
class SFTTrainSection(SupervisedTrainFields):
    micro_batch_size: int = flag(8, "sequences in one forward and backward pass of a rank", common=True)
    max_epochs: int = flag(2, "passes over the data", common=True)


@dataclass(frozen=True, slots=True)
class SFTConfig(SupervisedFields):
    """`openrlhf-ext sft`: supervised fine-tuning."""

    adam: AdamSection = section(partial(AdamSection, lr=5e-6), "AdamW")
    model: SFTModelSection = section(SFTModelSection, "the model")
    data: SFTDataSection = section(SFTDataSection, "rows and their columns")
    train: SFTTrainSection = section(SFTTrainSection, "batches and epochs")
    ds: DsSection = section(DsSection, "DeepSpeed, number formats, kernels")
    eval: AnsweredEvalSection = section(AnsweredEvalSection, "held-out evaluation")
    ckpt: CkptSection = section(
        partial(CkptSection, path="./ckpt/checkpoints_sft", max_mem=1e8), "checkpoints and exports"
    )
    logger: LoggerSection = section(partial(LoggerSection, wandb=WandbSection(project="openrlhf_train_sft")), "metrics")
