"""What `sft`, `rm` and `dpo` share: one model, its ranks, its rows."""

# ruff: noqa: RUF009 (`flag` and `section` are dataclasses.field with a help text)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openrlhf_ext.config.fields import declined, flag, section
from openrlhf_ext.config.sections import (
    MOE,
    AnsweringEvalSection,
    DataFields,
    DeviceSection,
    EvalSection,
    MemorySection,
    OptimizerFields,
    PlanSection,
    RaySection,
    TrainFields,
)


@dataclass(frozen=True, slots=True)
class ModelFields:
    """What every supervised command has in its `model` section."""

    model_name_or_path: str | None = flag(None, "the model: a Hugging Face folder or hub name", common=True)
    num_nodes: int = flag(1, "machines it trains on")
    num_gpus_per_node: int = flag(1, "ranks on each machine (on a CPU: processes)", common=True)
    gradient_checkpointing_enable: bool = flag(False, "recompute activations in the backward pass", common=True)
    gradient_checkpointing_reentrant: bool = flag(False, "the reentrant kind of it")
    aux_loss_coef: float = flag(0.0, "weight of the balancing loss", refused=MOE)


@dataclass(frozen=True, slots=True)
class RowsFields(DataFields):
    """What every supervised command has in its `data` section."""

    dataset: str | None = flag(None, "rows: files, folders or hub names; several with commas", common=True)
    dataset_probs: str | None = flag(None, "share of each of them, with commas (not set: all rows of all)")
    dataset_split: str = flag("train", "their split")
    max_samples: int = flag(1000000, "at most this many rows")
    tokenizer_chat_template: str | None = flag(None, "a chat template to use instead of the tokenizer's own")


@dataclass(frozen=True, slots=True)
class PairsDataSection(RowsFields):
    """Preference pairs."""

    max_len: int = flag(512, "tokens of the longest sequence, prompt and response together", common=True)
    prompt_key: str | None = flag(
        None, "column of the prompt (not set: what chosen and rejected have in common)", common=True
    )
    chosen_key: str = flag("chosen", "column of the better answer", common=True)
    rejected_key: str = flag("rejected", "column of the worse answer", common=True)
    differs_earlier: Literal["drop", "cut", "refuse"] = flag(
        "drop",
        "rows whose two dialogues part before their last turns: leave them out, cut both after the first assistant "
        "turn in which they differ, or stop",
    )
    overlong: Literal["truncate_left", "drop", "refuse"] = flag(
        "truncate_left",
        "pairs of more than data.max_len: cut the prompt at its left (an answer's end only where half of the room is "
        "not enough for it), leave them out, or stop",
    )


@dataclass(frozen=True, slots=True)
class SupervisedTrainFields(TrainFields):
    dynamic_batch_enable: bool = flag(False, "micro-batches by a budget of tokens instead of a number of sequences")
    max_tokens_per_gpu: int = flag(16192, "that budget, for each rank")
    length_group_steps: int = flag(1, "so many steps' rows are sorted by length before they are cut into steps")


@dataclass(frozen=True, slots=True)
class PairsTrainSection(SupervisedTrainFields):
    micro_batch_size: int = flag(1, "pairs in one forward and backward pass of a rank", common=True)
    batch_size: int = flag(128, "pairs in one optimizer step, over all ranks", common=True)


@dataclass(frozen=True, slots=True)
class AnsweredEvalSection(AnsweringEvalSection):
    """Held-out rows that are answered too, by the model in training."""

    scorer: str | None = flag(
        None,
        "answer the held-out rows and score that: exact, first_letter, number_after:MARK, last_number, tag:NAME, "
        "pattern:REGEX or math, as in `openrlhf-ext eval` (not set: figures of the loss alone)",
        common=True,
    )
    label_key: str | None = flag(
        None, "column of the reference answer; of a list any one (not set: the answer that is learned)"
    )
    max_samples: int | None = flag(None, "answer at most so many of the held-out rows (not set: all)")
    n_samples_per_prompt: int = flag(1, "answers for each prompt")
    temperature: float = flag(0.0, "sampling temperature (0: the likeliest token)")
    max_new_tokens: int = flag(256, "tokens of the longest answer")
    answers_at_a_time: int = flag(16, "answers that a rank samples at a time")


@dataclass(frozen=True, slots=True)
class SupervisedFields(OptimizerFields):
    """The sections that are the same in every supervised command."""

    eval: EvalSection = section(EvalSection, "held-out evaluation")
    device: DeviceSection = section(DeviceSection, "CPU or GPU")
    ray: RaySection = section(RaySection, "the cluster, where the model has several ranks")
    plan: PlanSection = section(PlanSection, "the plan that is made before anything loads")
    memory: MemorySection = section(MemorySection, "what the planner may choose")
    local_rank: int = flag(
        -1, "set by the deepspeed launcher", refused=declined("starting through the deepspeed launcher")
    )
    use_ms: bool = flag(False, "ModelScope instead of the Hugging Face hub", refused=declined("ModelScope"))
