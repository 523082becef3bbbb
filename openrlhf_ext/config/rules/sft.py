"""The rules of `sft`."""

from __future__ import annotations

from collections.abc import Iterator

from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation, accumulation, count, one_for_each, required
from openrlhf_ext.config.sft import SFTConfig


def sft_needs(config: SFTConfig, explicit: Explicit) -> Iterator[Violation]:
    yield from required(
        config,
        {
            "model.model_name_or_path": "the model, a Hugging Face folder or hub name",
            "data.dataset": "the rows, a file, folder or hub name",
        },
    )


def sft_exports_at_the_end(config: SFTConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.ckpt.save_hf:
        yield Violation("--ckpt.save_hf", None, "sft exports its model once, at the end, in this version; leave it out")


def sft_accumulation(config: SFTConfig, explicit: Explicit) -> Iterator[Violation]:
    ranks = config.model.num_nodes * config.model.num_gpus_per_node
    if ranks > 0 and config.train.micro_batch_size > 0:
        yield from accumulation(config.train.batch_size, config.train.micro_batch_size, ranks)


def turns_need_a_chat_template(config: SFTConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.data.multiturn and not config.data.apply_chat_template:
        yield Violation("--data.multiturn", None, "it needs --data.apply_chat_template")


def one_share_for_each_data_set(config: SFTConfig, explicit: Explicit) -> Iterator[Violation]:
    data = config.data
    if data.dataset_probs and data.dataset:
        yield from one_for_each(
            "--data.dataset_probs", count(data.dataset_probs), count(data.dataset), "--data.dataset"
        )


SFT_RULES: tuple[Rule, ...] = (
    sft_needs,
    sft_exports_at_the_end,
    sft_accumulation,
    turns_need_a_chat_template,
    one_share_for_each_data_set,
)
