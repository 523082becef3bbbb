"""The flags of `openrlhf-ext sft`, with the names, types and defaults of OpenRLHF 0.11.2's train_sft."""

# ruff: noqa: RUF009 (`flag` and `section` are dataclasses.field with a help text)

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from openrlhf_ext.config.fields import declined, flag, planned, section
from openrlhf_ext.config.sections import (
    MOE,
    AdamSection,
    CkptSection,
    DataFields,
    DeviceSection,
    DsSection,
    EvalSection,
    LoggerSection,
    LoraSection,
    OptimizerFields,
    TrainFields,
    WandbSection,
)

LORA = planned("LoRA and QLoRA for sft")


@dataclass(frozen=True, slots=True)
class SFTModelSection:
    model_name_or_path: str | None = flag(None, "the model: a Hugging Face folder or hub name", common=True)
    num_nodes: int = flag(1, "machines it trains on")
    num_gpus_per_node: int = flag(1, "ranks on each machine (on a CPU: processes)", common=True)
    gradient_checkpointing_enable: bool = flag(False, "recompute activations in the backward pass", common=True)
    gradient_checkpointing_reentrant: bool = flag(False, "the reentrant kind of it")
    pretrain_mode_enable: bool = flag(False, "learn the prompt's tokens too")
    aux_loss_coef: float = flag(0.0, "weight of the balancing loss", refused=MOE)


@dataclass(frozen=True, slots=True)
class SFTDataSection(DataFields):
    dataset: str | None = flag(None, "rows: files, folders or hub names; several with commas", common=True)
    dataset_probs: str | None = flag(None, "share of each of them, with commas (not set: all rows of all)")
    dataset_split: str = flag("train", "their split")
    max_samples: int = flag(1000000, "at most this many rows")
    input_template: str | None = flag("User: {}\nAssistant: ", "text around the prompt, with {} where it goes")
    output_key: str | None = flag(
        None, "column of the answer (not set: the input holds the whole conversation)", common=True
    )
    multiturn: bool = flag(False, "learn every assistant turn (with data.apply_chat_template)")
    tokenizer_chat_template: str | None = flag(None, "a chat template to use instead of the tokenizer's own")


@dataclass(frozen=True, slots=True)
class SFTTrainSection(TrainFields):
    micro_batch_size: int = flag(8, "sequences in one forward and backward pass of a rank", common=True)
    max_epochs: int = flag(2, "passes over the data", common=True)


@dataclass(frozen=True, slots=True)
class SFTDsSection(DsSection):
    load_in_4bit: bool = flag(False, "NF4 weights", refused=LORA)
    lora: LoraSection = section(LoraSection, "LoRA adapters", refused=LORA)


@dataclass(frozen=True, slots=True)
class SFTConfig(OptimizerFields):
    """`openrlhf-ext sft`: supervised fine-tuning."""

    adam: AdamSection = section(partial(AdamSection, lr=5e-6), "AdamW")
    model: SFTModelSection = section(SFTModelSection, "the model")
    data: SFTDataSection = section(SFTDataSection, "rows and their columns")
    train: SFTTrainSection = section(SFTTrainSection, "batches and epochs")
    ds: SFTDsSection = section(SFTDsSection, "DeepSpeed, number formats, kernels")
    eval: EvalSection = section(EvalSection, "held-out evaluation")
    ckpt: CkptSection = section(
        partial(CkptSection, path="./ckpt/checkpoints_sft", max_mem=1e8), "checkpoints and exports"
    )
    logger: LoggerSection = section(partial(LoggerSection, wandb=WandbSection(project="openrlhf_train_sft")), "metrics")
    device: DeviceSection = section(DeviceSection, "CPU or GPU")
    local_rank: int = flag(
        -1, "set by the deepspeed launcher", refused=declined("starting through the deepspeed launcher")
    )
    use_ms: bool = flag(False, "ModelScope instead of the Hugging Face hub", refused=declined("ModelScope"))
