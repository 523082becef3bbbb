"""The rules of every command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openrlhf_ext.config.fields import flags_of, get, is_planned
from openrlhf_ext.config.nearest import nearest
from openrlhf_ext.config.ranges import RANGES, SCHEDULES
from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation


def refused_flags(config: Any, explicit: Explicit) -> Iterator[Violation]:
    for flag in flags_of(type(config)).values():
        value = get(config, flag.path)
        if value == flag.default:
            continue
        reason = flag.refused or (flag.refused_values and flag.refused_values.get(value))
        if reason:
            words = f"{reason}; leave it at {_shown(flag.default)}"
            yield Violation(f"--{flag.path}", value, words, plannable=is_planned(reason))


def values_in_range(config: Any, explicit: Explicit) -> Iterator[Violation]:
    for path in flags_of(type(config)):
        holds, words = RANGES.get(path, (None, ""))
        value = get(config, path)
        if holds is not None and value is not None and not holds(value):
            yield Violation(f"--{path}", value, f"it must be {words}")


def schedule_is_known(config: Any, explicit: Explicit) -> Iterator[Violation]:
    for path in flags_of(type(config)):
        name = get(config, path)
        if path.rpartition(".")[2] == "lr_scheduler" and name not in SCHEDULES:
            near = nearest(name, SCHEDULES, dashes=False)
            remedy = f"did you mean {near}" if near else f"choose one of {', '.join(SCHEDULES)}"
            yield Violation(f"--{path}", name, remedy)


def template_has_a_place(config: Any, explicit: Explicit) -> Iterator[Violation]:
    template = config.data.input_template
    if template is not None and "{}" not in template:
        yield Violation("--data.input_template", repr(template), "put {} where the prompt goes")


def evaluation_has_data(config: Any, explicit: Explicit) -> Iterator[Violation]:
    if config.eval.dataset is None and config.eval.steps > 0:
        yield Violation("--eval.steps", config.eval.steps, "set --eval.dataset to what is to be evaluated")


def checkpoints_are_written(config: Any, explicit: Explicit) -> Iterator[Violation]:
    ckpt = config.ckpt
    if ckpt.save_steps > 0 and ckpt.disable_ds and not ckpt.save_hf:
        yield Violation(
            "--ckpt.save_steps", ckpt.save_steps, "with --ckpt.disable_ds nothing would be written; add --ckpt.save_hf"
        )


def zpg_needs_stage_3(config: Any, explicit: Explicit) -> Iterator[Violation]:
    if config.ds.zpg > 1 and config.ds.zero_stage != 3:
        yield Violation("--ds.zpg", config.ds.zpg, "it shards parameters; add --ds.zero_stage 3")


def varlen_needs_packing(config: Any, explicit: Explicit) -> Iterator[Violation]:
    if config.ds.attn_implementation == "torch_varlen" and not config.ds.packing_samples:
        yield Violation("--ds.attn_implementation", "torch_varlen", "it is for packed rows; add --ds.packing_samples")


def overlap_needs_stage_2(config: Any, explicit: Explicit) -> Iterator[Violation]:
    if config.ds.overlap_comm and config.ds.zero_stage < 2:
        yield Violation(
            "--ds.overlap_comm",
            None,
            "gradients travel during the backward pass from stage 2 on; "
            f"leave it out with --ds.zero_stage {config.ds.zero_stage}",
        )


def reentrant_needs_checkpointing(config: Any, explicit: Explicit) -> Iterator[Violation]:
    name = "actor" if isinstance(config, RLConfig) else "model"
    model = get(config, name)
    if model.gradient_checkpointing_reentrant and not model.gradient_checkpointing_enable:
        yield Violation(
            f"--{name}.gradient_checkpointing_reentrant",
            None,
            f"it has no effect without --{name}.gradient_checkpointing_enable",
        )


def quantised_weights_are_not_sharded(config: Any, explicit: Explicit) -> Iterator[Violation]:
    ds = config.ds
    if not (ds.load_in_4bit or ds.load_in_8bit):
        return
    bits = 4 if ds.load_in_4bit else 8
    if ds.load_in_4bit and ds.load_in_8bit:
        yield Violation(
            "--ds.load_in_8bit", None, "the weights have 4 bits by --ds.load_in_4bit; leave one of them out"
        )
    elif ds.zero_stage == 3:
        yield Violation(
            f"--ds.load_in_{bits}bit", None, f"{bits}-bit weights are not sharded; set --ds.zero_stage 2 or less"
        )
    elif ds.param_dtype == "bf16" and ds.grad_accum_dtype == "fp32":
        yield Violation(
            "--ds.grad_accum_dtype",
            "fp32",
            f"gradients are summed in float32 at stage 3 alone, which {bits}-bit weights rule out",
        )


def eight_bits_stay_on_the_device(config: Any, explicit: Explicit) -> Iterator[Violation]:
    for path in flags_of(type(config)):
        if path.endswith("adam.eight_bit") and get(config, path) and config.ds.adam_offload:
            yield Violation(f"--{path}", None, "bitsandbytes pages its state itself; leave out --ds.adam_offload")


def _shown(default: Any) -> str:
    text = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return text if text not in ("None", "") else "unset"


COMMON_RULES: tuple[Rule, ...] = (
    refused_flags,
    values_in_range,
    schedule_is_known,
    template_has_a_place,
    evaluation_has_data,
    checkpoints_are_written,
    zpg_needs_stage_3,
    overlap_needs_stage_2,
    varlen_needs_packing,
    reentrant_needs_checkpointing,
    quantised_weights_are_not_sharded,
    eight_bits_stay_on_the_device,
)
