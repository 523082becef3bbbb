"""What no single flag can say by its type: ranges, and flags at odds with each other.

A rule is a small named function of the tree and the explicit paths; all of them run, and every violation
is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from openrlhf_ext.config.fields import flags_of, get
from openrlhf_ext.config.nearest import nearest
from openrlhf_ext.config.ranges import RANGES, SCHEDULES
from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.sft import SFTConfig

Explicit = frozenset[str]
GROUP_ESTIMATORS = ("rloo", "reinforce_baseline", "group_norm")


@dataclass(frozen=True, slots=True)
class Violation:
    """A flag, the value it was given, and what is wrong or what to change."""

    flag: str
    value: Any
    remedy: str

    def __str__(self) -> str:
        value = " ".join(map(str, self.value)) if isinstance(self.value, tuple) else self.value
        return f"{self.flag}{'' if value is None else f' {value}'}: {self.remedy}."


Rule = Callable[[Any, Explicit], Iterable[Violation]]


def broken_rules(config: Any, explicit: Explicit) -> list[Violation]:
    """Every violation of every rule of this command."""
    rules = (*COMMON_RULES, *(RL_RULES if isinstance(config, RLConfig) else SFT_RULES))
    return [violation for rule in rules for violation in rule(config, explicit)]


# --- every command ---------------------------------------------------------------------------------------


def refused_flags(config: Any, explicit: Explicit) -> Iterator[Violation]:
    for flag in flags_of(type(config)).values():
        value = get(config, flag.path)
        if value == flag.default:
            continue
        reason = flag.refused or (flag.refused_values and flag.refused_values.get(value))
        if reason:
            yield Violation(f"--{flag.path}", value, f"{reason}; leave it at {_shown(flag.default)}")


def values_in_range(config: Any, explicit: Explicit) -> Iterator[Violation]:
    for path in flags_of(type(config)):
        holds, words = RANGES.get(path, (None, ""))
        value = get(config, path)
        if holds is not None and value is not None and not holds(value):
            yield Violation(f"--{path}", value, f"it must be {words}")


def schedule_is_known(config: Any, explicit: Explicit) -> Iterator[Violation]:
    path = "actor.lr_scheduler" if isinstance(config, RLConfig) else "lr_scheduler"
    name = get(config, path)
    if name not in SCHEDULES:
        near = nearest(name, SCHEDULES, dashes=False)
        yield Violation(f"--{path}", name, f"did you mean {near}" if near else f"choose one of {', '.join(SCHEDULES)}")


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


def _required(config: Any, paths: dict[str, str]) -> Iterator[Violation]:
    for path, what in paths.items():
        if not get(config, path):
            yield Violation(f"--{path}", None, f"it is required: {what}")


def accumulation(batch: int, micro: int, ranks: int) -> Iterator[Violation]:
    """Accumulation is derived, so batch = micro x ranks x accumulation must have a solution."""
    unit = micro * ranks
    if batch % unit:
        below, above = batch // unit * unit, (batch // unit + 1) * unit
        choice = f"{below} or {above}" if below else f"{above}"
        yield Violation(
            "--train.batch_size",
            batch,
            f"it is no multiple of --train.micro_batch_size {micro} x {ranks} ranks; choose {choice}, "
            "or another micro-batch size",
        )


def _one_for_each(flag: str, given: int, sources: int, where: str) -> Iterator[Violation]:
    if given != sources:
        yield Violation(flag, None, f"{given} values for {sources} sources in {where}; give one for each")


def _count(text: str) -> int:
    return len(text.split(","))


def _shown(default: Any) -> str:
    text = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return text if text not in ("None", "") else "unset"


# --- rl --------------------------------------------------------------------------------------------------


def rl_needs(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    yield from _required(
        config,
        {
            "actor.model_name_or_path": "the policy, a Hugging Face folder or hub name",
            "data.prompt_dataset": "the prompts, a file, folder or hub name",
            "reward.remote_url": "where rewards come from, a Python file with reward_func or a URL",
        },
    )


def rollouts_divide_into_steps(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    prompts, n, batch = config.rollout.batch_size, config.rollout.n_samples_per_prompt, config.train.batch_size
    if batch > 0 and (prompts * n) % batch:
        divisors = [d for d in range(1, prompts * n + 1) if prompts * n % d == 0]
        near = sorted(sorted(divisors, key=lambda d: abs(d - batch))[:2])
        yield Violation(
            "--train.batch_size",
            batch,
            f"it does not divide the {prompts * n} sequences of a rollout step (--rollout.batch_size "
            f"{prompts} x --rollout.n_samples_per_prompt {n}); choose {' or '.join(map(str, near))}",
        )


def rl_accumulation(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    if "actor.num_gpus_per_node" not in explicit:
        return  # the device decides how many ranks the default becomes; checked again then
    ranks = config.actor.num_nodes * config.actor.num_gpus_per_node
    if not config.train.dynamic_batch_enable and ranks > 0 and config.train.micro_batch_size > 0:
        yield from accumulation(config.train.batch_size, config.train.micro_batch_size, ranks)


def groups_have_siblings(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    estimator = config.algo.advantage.estimator
    if estimator in GROUP_ESTIMATORS and config.rollout.n_samples_per_prompt < 2:
        yield Violation(
            "--algo.advantage.estimator",
            estimator,
            "it compares the answers of one prompt, and there is one; set --rollout.n_samples_per_prompt to 2 or more",
        )


def discount_is_possible(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    advantage = config.algo.advantage
    if advantage.gamma != 1.0 and advantage.estimator in GROUP_ESTIMATORS:
        yield Violation(
            "--algo.advantage.gamma",
            advantage.gamma,
            f"{advantage.estimator} gives every token of an answer the same advantage; leave it at 1.0",
        )


def dashboard_is_ours(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.ray.dashboard and config.ray.address is not None:
        yield Violation("--ray.dashboard", None, "a joined cluster has its own; leave it out with --ray.address")


def answers_leave_room_for_prompts(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    new, longest = config.rollout.max_new_tokens, config.data.max_len
    if new is not None and new >= longest:
        yield Violation(
            "--rollout.max_new_tokens",
            new,
            f"--data.max_len {longest} is for prompt and response together; raise it above {new}",
        )


def sleep_needs_colocation(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    for path in ("vllm.enable_sleep", "ds.enable_sleep"):
        if get(config, path) and not config.train.colocate_all:
            yield Violation(f"--{path}", None, "nobody else uses the memory it frees; add --train.colocate_all")


def colocated_roles_have_equal_ranks(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    shared = config.train.colocate_all or config.train.colocate_actor_ref
    if not shared or config.algo.kl.init_coef == 0:
        return
    for name in ("num_nodes", "num_gpus_per_node"):
        actor, ref = getattr(config.actor, name), getattr(config.ref, name)
        if actor != ref and f"ref.{name}" in explicit:  # a default follows the policy
            yield Violation(
                f"--ref.{name}", ref, f"it shares the policy's devices; set it to {actor}, as --actor.{name}"
            )


def budgets_need_dynamic_batches(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    for path in ("train.max_tokens_per_gpu", "rollout.max_tokens_per_gpu"):
        value, default = get(config, path), flags_of(RLConfig)[path].default
        if value != default and not config.train.dynamic_batch_enable:
            yield Violation(f"--{path}", value, "it has no effect without --train.dynamic_batch_enable")


def one_weight_for_each_reward(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.reward.weights and config.reward.remote_url:
        yield from _one_for_each(
            "--reward.weights", len(config.reward.weights), _count(config.reward.remote_url), "--reward.remote_url"
        )


def one_share_for_each_prompt_set(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    data = config.data
    if data.prompt_probs and data.prompt_dataset:
        yield from _one_for_each(
            "--data.prompt_probs", _count(data.prompt_probs), _count(data.prompt_dataset), "--data.prompt_dataset"
        )


def best_metric_is_measured(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    key = config.ckpt.best_metric_key
    if key not in ("", "none") and config.eval.dataset is None:
        yield Violation("--ckpt.best_metric_key", key, "nothing is evaluated; set --eval.dataset")


# --- sft -------------------------------------------------------------------------------------------------


def sft_needs(config: SFTConfig, explicit: Explicit) -> Iterator[Violation]:
    yield from _required(
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
        yield from _one_for_each(
            "--data.dataset_probs", _count(data.dataset_probs), _count(data.dataset), "--data.dataset"
        )


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
)
RL_RULES: tuple[Rule, ...] = (
    rl_needs,
    rollouts_divide_into_steps,
    rl_accumulation,
    groups_have_siblings,
    discount_is_possible,
    dashboard_is_ours,
    answers_leave_room_for_prompts,
    sleep_needs_colocation,
    colocated_roles_have_equal_ranks,
    budgets_need_dynamic_batches,
    one_weight_for_each_reward,
    one_share_for_each_prompt_set,
    best_metric_is_measured,
)
SFT_RULES: tuple[Rule, ...] = (
    sft_needs,
    sft_exports_at_the_end,
    sft_accumulation,
    turns_need_a_chat_template,
    one_share_for_each_data_set,
)
