"""Traps of learning rates, adapters and number formats."""

from __future__ import annotations

from openrlhf_ext.plan import speed
from openrlhf_ext.plan.parameters import adapter_parameters
from openrlhf_ext.plan.traps.case import Case, Trap

FULL_BELOW = {"sft": 1e-4, "rm": 5e-5, "dpo": 5e-5, "rl": 1e-5}
"""Learning rates of full fine-tuning lie below; adapters take these and more."""
ADAPTERS_ABOVE = {"sft": 1e-5, "rm": 1e-5, "dpo": 1e-6, "rl": 1e-6}
"""Those of adapters lie above: about ten times the rate of full fine-tuning (Schulman et al. 2025, "LoRA Without
Regret")."""
USUAL_FULL = {"sft": 1e-5, "rm": 9e-6, "dpo": 5e-7, "rl": 1e-6}
USUAL_ADAPTERS = {"sft": 2e-4, "rm": 1e-4, "dpo": 5e-6, "rl": 1e-5}
MOST_BF16_SUMMANDS = 32
"""A bf16 number has 8 bits: what is added to a sum of so many like it loses its last 5."""


def learning_rate_zero(case: Case) -> str | None:
    if case.optimizer.adam.lr > 0:
        return None
    flag = f"{case.optimizer_flag}adam.lr"
    return f"{flag} 0 trains nothing; give {USUAL_FULL[case.setup.command]:g}."


def learning_rate_of_full_training(case: Case) -> str | None:
    rate, command = case.optimizer.adam.lr, case.setup.command
    if not case.trained.lora or not 0 < rate <= ADAPTERS_ABOVE[command]:
        return None
    return (
        f"{case.optimizer_flag}adam.lr {rate:g} is a rate for full fine-tuning, and adapters take about ten times as "
        f"much; give {USUAL_ADAPTERS[command]:g}."
    )


def learning_rate_of_adapters(case: Case) -> str | None:
    rate, command = case.optimizer.adam.lr, case.setup.command
    if case.trained.lora or rate < FULL_BELOW[command]:
        return None
    return (
        f"{case.optimizer_flag}adam.lr {rate:g} is a rate for adapters, and all weights are trained; give "
        f"{USUAL_FULL[command]:g}, or --ds.lora.rank."
    )


def lora_scale(case: Case) -> str | None:
    lora = case.trained.lora
    if lora is None or lora.rank <= lora.alpha <= 4 * lora.rank:
        return None
    return (
        f"--ds.lora.alpha {lora.alpha} with --ds.lora.rank {lora.rank} scales the adapters by "
        f"{lora.alpha / lora.rank:g}; give --ds.lora.alpha {lora.rank} to {2 * lora.rank}."
    )


def lora_rank_beyond_layer(case: Case) -> str | None:
    lora, model = case.trained.lora, case.trained
    if lora is None:
        return None
    halves = adapter_parameters(model.shape, lora, model.kind)
    sides: dict[str, int] = {}
    for half in halves:
        name, (rows, columns) = half.name.split(".lora_")[0].rpartition(".")[2], half.shape
        side = columns if ".lora_A." in half.name else rows
        sides[name] = min(side, sides.get(name, side))
    name, side = min(sides.items(), key=lambda item: item[1])
    if lora.rank <= side:
        return None
    return (
        f"--ds.lora.rank {lora.rank} is more than the {side} dimensions of {name}, whose update cannot have a higher "
        f"rank; give {side} or less, or leave {name} out of --ds.lora.target_modules."
    )


def lora_dropout_in_rl(case: Case) -> str | None:
    lora = case.trained.lora
    if not case.rl or lora is None or lora.dropout == 0:
        return None
    return f"--ds.lora.dropout {lora.dropout:g}: the policy that is trained is not quite the one that answered; give 0."


def bf16_not_on_card(case: Case) -> str | None:
    if case.card is None or case.card.bf16 or case.trained.dtype != "bf16":
        return None
    return f"--ds.param_dtype bf16: the {case.card.name} computes it slowly or not at all; give fp16."


def bf16_not_of_this_cpu(case: Case) -> str | None:
    if case.card is not None or case.trained.dtype != "bf16":
        return None
    times = speed.core_flops("fp32") / speed.core_flops("bf16")
    if times <= 1:
        return None
    return (
        "--ds.param_dtype bf16: this CPU has no instructions for it, and multiplies matrices of float32 "
        f"{times:.0f} times as fast; give fp32."
    )


def fp16_overflows(case: Case) -> str | None:
    if case.trained.dtype != "fp16" or not case.trained.shape.model_type.startswith("gemma"):
        return None
    return "--ds.param_dtype fp16: Gemma's activations pass 65504, the largest fp16 number; give bf16 or fp32."


def gradients_summed_in_bf16(case: Case) -> str | None:
    config, model = case.config, case.trained
    if model.dtype != "bf16" or model.grad_accum_dtype is not None or (case.rl and config.train.dynamic_batch_enable):
        return None
    summands = config.train.batch_size // (config.train.micro_batch_size * model.ranks)
    if summands <= MOST_BF16_SUMMANDS:
        return None
    return (
        f"{summands} micro-batches are added up in bf16, which has 8 bits; give a larger --train.micro_batch_size, or "
        "--ds.grad_accum_dtype fp32, which runs at stage 3."
    )


def softcap_left_out(case: Case) -> str | None:
    if case.trained.shape.attention_softcap is None or case.config.ds.attn_implementation != "sdpa":
        return None
    return (
        f"--ds.attn_implementation sdpa leaves out the soft cap on attention scores that {case.trained.shape.name} was "
        "trained with; give eager or flash_attention_2."
    )


LEARNING: tuple[Trap, ...] = (
    learning_rate_zero,
    learning_rate_of_full_training,
    learning_rate_of_adapters,
    lora_scale,
    lora_rank_beyond_layer,
    lora_dropout_in_rl,
    bf16_not_on_card,
    bf16_not_of_this_cpu,
    fp16_overflows,
    gradients_summed_in_bf16,
    softcap_left_out,
)
