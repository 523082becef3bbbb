"""The rules of `sft`, `rm` and `dpo`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openrlhf_ext.config.dpo import DPOConfig
from openrlhf_ext.config.fields import flags_of, get
from openrlhf_ext.config.rm import RMConfig
from openrlhf_ext.config.rules.answered import ANSWERED
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation, accumulation, count, one_for_each, required
from openrlhf_ext.config.sft import SFTConfig


def supervised_needs(config: Any, explicit: Explicit) -> Iterator[Violation]:
    yield from required(config, {"model.model_name_or_path": "the model, a Hugging Face folder or hub name"})
    yield from required(config, {"data.dataset": "the rows, a file, folder or hub name"}, plannable=True)


def supervised_accumulation(config: Any, explicit: Explicit) -> Iterator[Violation]:
    ranks = config.model.num_nodes * config.model.num_gpus_per_node
    if ranks > 0 and config.train.micro_batch_size > 0:
        yield from accumulation(config.train.batch_size, config.train.micro_batch_size, ranks)


def turns_need_a_chat_template(config: SFTConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.data.multiturn and not config.data.apply_chat_template:
        yield Violation("--data.multiturn", None, "it needs --data.apply_chat_template")


def one_share_for_each_data_set(config: Any, explicit: Explicit) -> Iterator[Violation]:
    data = config.data
    if data.dataset_probs and data.dataset:
        yield from one_for_each(
            "--data.dataset_probs", count(data.dataset_probs), count(data.dataset), "--data.dataset"
        )


def _goes_on_from_adapters(config: Any) -> bool:
    return (Path(config.model.model_name_or_path or "") / "adapter_config.json").is_file()


def adapters_have_a_rank(config: Any, explicit: Explicit) -> Iterator[Violation]:
    if config.ds.lora.rank > 0 or _goes_on_from_adapters(config):
        return
    for name in ("lora.alpha", "lora.target_modules", "lora.dropout", "load_in_4bit", "load_in_8bit"):
        path = f"ds.{name}"
        if get(config, path) != flags_of(type(config))[path].default:
            yield Violation(f"--{path}", None, "it has no effect without --ds.lora.rank above 0")


def head_fits_the_loss(config: RMConfig, explicit: Explicit) -> Iterator[Violation]:
    model = config.model
    if model.loss_type == "general" and (model.head_dim < 2 or model.head_dim % 2):
        yield Violation(
            "--model.head_dim", model.head_dim, "the general preference model pairs its numbers up; give an even one"
        )
    if model.loss_type != "general" and model.head_dim != 1:
        yield Violation("--model.head_dim", model.head_dim, "it has no effect without --model.loss_type general")
    if model.loss_type == "general" and model.centring_coef:
        yield Violation("--model.centring_coef", model.centring_coef, "it is for --model.loss_type sigmoid or logexp")
    if model.loss_type == "general" and model.margin_loss_enable:
        yield Violation("--model.margin_loss_enable", None, "it is for --model.loss_type sigmoid or logexp")


def one_loss(config: DPOConfig, explicit: Explicit) -> Iterator[Violation]:
    model = config.model
    if model.ipo_enable and model.hinge_enable:
        yield Violation("--model.hinge_enable", None, "it is another loss than --model.ipo_enable; leave one out")
    if model.label_smoothing and (model.ipo_enable or model.hinge_enable):
        yield Violation("--model.label_smoothing", model.label_smoothing, "it is for the sigmoid loss; leave it out")


def reference_can_be_had(config: DPOConfig, explicit: Explicit) -> Iterator[Violation]:
    ref = config.ref
    if ref.strategy in ("base", "adapter") and config.ds.lora.rank == 0 and not _goes_on_from_adapters(config):
        yield Violation("--ref.strategy", ref.strategy, "it needs adapters; add --ds.lora.rank")
    if ref.strategy in ("base", "adapter") and ref.model_name_or_path:
        yield Violation("--ref.model_name_or_path", None, f"it has no effect with --ref.strategy {ref.strategy}")
    if ref.offload and ref.strategy not in ("auto", "offloaded"):
        yield Violation("--ref.offload", None, f"it has no effect with --ref.strategy {ref.strategy}")


COMMON: tuple[Rule, ...] = (
    supervised_needs,
    supervised_accumulation,
    one_share_for_each_data_set,
    adapters_have_a_rank,
)
SUPERVISED_RULES: dict[type, tuple[Rule, ...]] = {
    SFTConfig: (*COMMON, *ANSWERED, turns_need_a_chat_template),
    RMConfig: (*COMMON, head_fits_the_loss),
    DPOConfig: (*COMMON, *ANSWERED, one_loss, reference_can_be_had),
}
