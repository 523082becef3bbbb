"""Command lines that several tests plan."""

from __future__ import annotations

from openrlhf_ext.config import parse
from openrlhf_ext.plan.cards import card_of_size
from openrlhf_ext.plan.make import make_plan
from openrlhf_ext.plan.types import Change, DataSize, Hardware

REINFORCE = (
    "--actor.model_name_or_path Qwen/Qwen3-4B --judge.model_name_or_path google/medgemma-4b-it "
    "--algo.advantage.estimator reinforce --train.colocate_all --vllm.gpu_memory_utilization 0.75 "
    "--actor.num_gpus_per_node 1 --rollout.batch_size 64 --train.batch_size 16 --train.micro_batch_size 4 "
    "--rollout.micro_batch_size 4 --data.max_len 4096 --rollout.max_new_tokens 2048 --ds.zero_stage 3 "
    "--actor.gradient_checkpointing_enable --ds.packing_samples"
)
DPO = (
    "--model.model_name_or_path mistralai/Mistral-7B-v0.1 --data.max_len 1024 --train.micro_batch_size 1 "
    "--model.gradient_checkpointing_enable"
)
LORA = "--ds.lora.rank 16 --ds.lora.alpha 32"


def arguments(
    command: str, flags: str, gigabytes: float, *, count: int = 1, host: float | None = None, rows: int = 638
):
    parsed = parse(command, flags.split(), planning=True)
    hardware = Hardware(card_of_size(gigabytes), count, 1, int(host * 1e9) if host else None)
    data = DataSize(rows, 500.0, parsed.config.data.max_len, how="given")
    return command, parsed.config, parsed.explicit, hardware, data


def with_changes(flags: str, changes: tuple[Change, ...]) -> str:
    return " ".join([flags, *(f"{change.flag} {change.value}" for change in changes)])


def fits(command: str, flags: str, gigabytes: float, **hardware) -> bool:
    return make_plan(*arguments(command, flags, gigabytes, **hardware)).memory.fits
