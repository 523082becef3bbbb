"""Every difference between our flags and those of OpenRLHF 0.11.2's command lines, with its reason.

`openrlhf_0_11_2_flags.json` holds the facts: names, types, defaults and choices, read from its wheel.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from openrlhf_ext.config import TREES, Flag, flags_of, get, parse
from openrlhf_ext.errors import ConfigError

THEIRS = json.loads((Path(__file__).parent / "openrlhf_0_11_2_flags.json").read_text(encoding="utf-8"))["clis"]
THEIR_COMMAND = {
    "rl": "train_ppo_ray", "sft": "train_sft", "rm": "train_rm", "dpo": "train_dpo", "serve-rm": "serve_rm"
}  # fmt: skip

DATED = "chosen when the run starts, so that two parses of one command line are equal"
FP32 = "float32 for CPUs and exact tests"
ONE_FORM = "always a list, so its readers know one form"
GB = "a number of GB may be a fraction"

# (flag, what differs): (theirs, ours, why), in every command
EVERYWHERE: dict[tuple[str, str], tuple[Any, Any, str]] = {
    ("logger.wandb.run_name", "default"): ("(dated)", None, DATED),
    ("logger.wandb.run_name", "type"): ("str", "str or None", DATED),
    ("ds.param_dtype", "choices"): (["bf16", "fp16"], ["bf16", "fp16", "fp32"], FP32),
    ("ds.grad_accum_dtype", "choices"): (None, ["bf16", "fp16", "fp32"], "a wrong name fails at once"),
    ("ds.zero_stage", "choices"): (None, [0, 1, 2, 3], "another stage fails at once"),
    ("ds.lora.target_modules", "default"): ("all-linear", ["all-linear"], ONE_FORM),
}

# (command, flag, what differs): (theirs, ours, why)
DIFFERENCES: dict[tuple[str, str, str], tuple[Any, Any, str]] = {
    (command, *key): row
    for command, tree in TREES.items()
    for key, row in EVERYWHERE.items()
    if key[0] in flags_of(tree)
} | {
    ("rl", "vllm.num_engines", "default"): (None, 1, "rollouts always come from an engine; None fails in OpenRLHF"),
    ("rl", "vllm.num_engines", "type"): ("int or None", "int", "the same"),
    ("rl", "algo.advantage.is_correction_threshold", "arity"): (
        "1 or more",
        "any number",
        "a rule asks for one or two numbers",
    ),
    ("rl", "actor.policy_loss_type", "choices"): (["ppo", "gspo"], ["ppo", "gspo", "cispo"], "CISPO (MiniMax-M1)"),
    ("rl", "actor.loss_agg_mode", "choices"): (
        ["token-mean", "seq-mean-token-mean"],
        ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"],
        "Dr. GRPO's own aggregation",
    ),
    ("sft", "ckpt.max_mem", "type"): ("int", "float", GB),
    ("rm", "ckpt.max_mem", "type"): ("int", "float", GB),
    ("dpo", "ckpt.max_mem", "type"): ("int", "float", GB),
    ("sft", "data.input_template", "type"): ("str", "str or None", "None is no template, as in rl"),
    ("serve-rm", "host", "default"): ("0.0.0.0", "127.0.0.1", "who else may ask is the user's decision"),
    ("rm", "model.loss_type", "choices"): (None, ["sigmoid", "logexp", "general"], "another loss fails at once"),
}

# What a flag of theirs does otherwise here.
MEANINGS: dict[str, dict[str, str]] = {
    "rl": {
        "actor.loss_agg_mode": "gspo weighs sequences; theirs overrides another choice silently, here it is refused",
        "algo.advantage.is_correction_threshold": "one number means HIGH; theirs refuses its own default for a "
        "divergence when the model is built, here that is said before",
        "critic.freezing_steps": "exactly so many rollout steps; theirs freezes the policy for one more",
        "ds.enable_sleep": "refused with train.async_enable, under which models and engines work at the same time",
        "reward.model_name_or_path": "added to the sources of reward.remote_url; theirs leaves the model out then",
        "rollout.vllm_generate_batch_size": "a multiple of rollout.batch_size, with or without train.async_enable, "
        "which theirs demands",
        "train.colocate_critic_reward": "train.colocate_all holds for critic and reward model too; theirs gives them "
        "GPUs of their own then",
    },
    "serve-rm": {
        "batch_size": "not set: as many queries as a budget of tokens holds; theirs takes a whole request at once",
        "data.max_len": "a longer query loses its beginning; theirs its end, which is where the score is read",
    },
}

EVERY = "every command runs on the CPU or the GPU that was asked for"
CLUSTER = "which Ray cluster, and who may reach it"
PLANNED = "a plan before anything loads"
EIGHT_BIT = "the optimizer of QLoRA's users"
INT8 = "8-bit loading: between QLoRA's 4 bits and whole weights"
GOAL = "a run may end as soon as it is good enough"
PARTED = "what happens to dialogues that part before their last turns is a named rule"
SUPERVISED = {
    "device.type": EVERY,
    "plan.force": PLANNED,
    "memory.auto": PLANNED,
    "train.stop_when": GOAL,
    "adam.eight_bit": EIGHT_BIT,
    "ray.address": CLUSTER,
    "ray.bind": CLUSTER,
    "ray.dashboard": CLUSTER,
    "ray.dashboard_port": CLUSTER,
    "train.dynamic_batch_enable": "micro-batches by tokens, as in rl",
    "train.max_tokens_per_gpu": "micro-batches by tokens, as in rl",
    "train.length_group_steps": "less padding",
    "data.overlong": "rows that are too long follow one rule, of which there are several",
    "model.num_nodes": "OpenRLHF reads it from the deepspeed launcher, which we do not need",
    "model.num_gpus_per_node": "OpenRLHF reads it from the deepspeed launcher, which we do not need",
    "ds.logprob_chunk_size": "full logits are never in memory",
    "ds.load_in_8bit": INT8,
    "logger.metrics_file": "metrics on disk",
}


OF_ANSWERS = {
    f"eval.{name}": "answers of evaluations are kept, and told apart by groups and subjects"
    for name in ("context_key", "group_by", "subject_column", "taxonomy")
}
ANSWERED = OF_ANSWERS | {
    f"eval.{name}": "what the model in training answers to held-out rows, beside its loss"
    for name in (
        "scorer", "label_key", "max_samples", "n_samples_per_prompt", "temperature", "max_new_tokens",
        "answers_at_a_time",
    )
}  # fmt: skip


def whole(section: str, reason: str, command: str = "rl") -> dict[str, str]:
    """A section that is ours altogether."""
    return {path: reason for path in flags_of(TREES[command]) if path.startswith(f"{section}.")}


OURS = {
    "rl": {
        "device.type": EVERY,
        "plan.force": PLANNED,
        "memory.auto": PLANNED,
        **whole("judge", "a language model that scores, as a role of its own"),
        "train.stop_when": GOAL,
        **OF_ANSWERS,
        "eval.remote_url": "a judge that is trained by does not say itself whether it was right",
        **whole("student", "RLT: a student's log-probs are the reward"),
        "ref.sync_steps": "RLT, TR-DPO: the reference follows the policy",
        "ref.sync_mixup": "the same",
        **whole("agent", "episodes have limits"),
        "actor.adam.eight_bit": EIGHT_BIT,
        "critic.adam.eight_bit": EIGHT_BIT,
        "ray.address": CLUSTER,
        "ray.bind": CLUSTER,
        "ray.dashboard": CLUSTER,
        "ray.dashboard_port": CLUSTER,
        "reward.weights": "several reward sources at once",
        "reward.on_error": "what a failed reward does is a choice, never a silent zero",
        "reward.timeout_s": "user code has a time limit",
        "reward.max_retries": "and is tried again",
        "reward.normalize": "sources of different scales add up",
        **{
            f"reward.http_{name}": "a slow, busy or dead server costs what it must"
            for name in ("batch_size", "concurrency", "failures", "cooldown_s")
        },
        **{
            f"reward.{name}": "rewards by rule need no file"
            for name in ("format_pattern", "format_tags", "length_range", "answer_pattern", "verify_timeout_s")
        },
        "data.drop_last": "the last short batch is a step unless this is set",
        "data.overlong_prompt": "what happens to a prompt without room is a named rule",
        "algo.advantage.norm": "normalisation is a choice of its own, for every estimator",
        "rollout.top_k": "vLLM's sampling",
        "rollout.min_p": "vLLM's sampling",
        "rollout.stop": "vLLM's sampling",
        "vllm.kv_cache_gb": "engines on a CPU",
        "vllm.threads": "engines on a CPU",
        "vllm.sync_bucket_mb": "weights travel in buckets",
        "ds.logprob_chunk_size": "full logits are never in memory",
        "ds.load_in_8bit": INT8,
        "logger.metrics_file": "metrics on disk",
        "logger.rollout_dir": "rollouts on disk",
    },
    "sft": SUPERVISED | ANSWERED,
    "rm": SUPERVISED
    | {
        "model.centring_coef": "scores around zero (arXiv:2312.09244)",
        "model.temperature": "the scale of the Bradley-Terry model",
        "model.head_dim": "the general preference model (arXiv:2410.02197)",
        "data.margin_key": "the margin's column has a name",
        "data.differs_earlier": PARTED,
        "ds.use_liger_kernel": "one section for all commands; refused",
    },
    "dpo": SUPERVISED
    | ANSWERED
    | {
        "model.hinge_enable": "SLiC's loss",
        "model.length_normalize": "length-normalised log-probs",
        "data.differs_earlier": PARTED,
        "ref.strategy": "the reference by the cheapest way that is right",
        "ref.cache_dir": "log-probs that are computed once are kept",
    },
    "serve-rm": {
        "device.type": EVERY,
        **whole("student", "RLT's reward behind HTTP", "serve-rm"),
        "limits.request_mb": "memory is not the clients' to fill",
        "limits.waiting_mb": "memory is not the clients' to fill",
    },
}

NUMBERS = {"inf": float("inf"), "100000000.0": 100_000_000}


def theirs(command: str) -> dict[str, dict[str, Any]]:
    """Their flags by path; `--x.no_y` spells `x.y` false and is no field of its own."""
    return {row["flag"].removeprefix("--"): row for row in THEIRS[THEIR_COMMAND[command]] if "dest" not in row}


def their_default(row: dict[str, Any]) -> Any:
    default = row.get("default", False if row.get("action") == "store_true" else None)
    if isinstance(default, dict):
        number = re.search(r"inf|100000000\.0", default["expr"])
        return NUMBERS[number.group()] if number else "(dated)"
    return default


def facts_of_theirs(row: dict[str, Any]) -> dict[str, Any]:
    kind = "bool" if row.get("action") == "store_true" else row["type"]
    optional = their_default(row) is None
    arity = {None: "one", "*": "any number", "+": "1 or more"}.get(row.get("nargs"), str(row.get("nargs")))
    return {
        "type": f"{kind} or None" if optional else kind,
        "default": their_default(row),
        "choices": row.get("choices"),
        "arity": arity,
    }


def facts_of_ours(flag: Flag) -> dict[str, Any]:
    _, most = flag.arity
    kind = "bool" if flag.is_bool else flag.type_name.split(" ")[0].replace("text", "str")
    choices = None
    if "|" in kind and kind != "bool":
        choices = [int(item) if item.isdigit() else item for item in kind.split("|")]
        kind = type(choices[0]).__name__
    return {
        "type": f"{kind} or None" if flag.is_optional else kind,
        "default": list(flag.default) if isinstance(flag.default, tuple) else flag.default,
        "choices": choices,
        "arity": "any number" if most is None else "one" if most == 1 else str(most),
    }


def differences(command: str) -> dict[tuple[str, str, str], tuple[Any, Any]]:
    ours = flags_of(TREES[command])
    found = {}
    for path, row in theirs(command).items():
        if path in ours:
            a, b = facts_of_theirs(row), facts_of_ours(ours[path])
            found |= {(command, path, fact): (a[fact], b[fact]) for fact in a if a[fact] != b[fact]}
    return found


@pytest.mark.parametrize("command", TREES)
def test_no_flag_of_theirs_is_missing(command: str):
    assert not theirs(command).keys() - flags_of(TREES[command]).keys()


@pytest.mark.parametrize("command", TREES)
def test_every_difference_has_a_reason(command: str):
    listed = {key: row[:2] for key, row in DIFFERENCES.items() if key[0] == command}
    assert differences(command) == listed


@pytest.mark.parametrize("command", TREES)
def test_every_flag_of_ours_has_a_reason(command: str):
    assert flags_of(TREES[command]).keys() - theirs(command).keys() == OURS[command].keys()


def test_what_means_something_else_is_a_flag_of_both():
    for command, flags in MEANINGS.items():
        assert flags.keys() <= theirs(command).keys() & flags_of(TREES[command]).keys()


def test_the_facts_are_complete():
    assert {name: len(THEIRS[cli]) for name, cli in THEIR_COMMAND.items()} == {
        "rl": 167,
        "sft": 77,
        "rm": 79,
        "dpo": 82,
        "serve-rm": 14,
    }


REQUIRED = {
    "rl": "--actor.model_name_or_path m --data.prompt_dataset d --reward.remote_url r.py --actor.num_gpus_per_node 1",
    "sft": "--model.model_name_or_path m --data.dataset d",
    "rm": "--model.model_name_or_path m --data.dataset d",
    "dpo": "--model.model_name_or_path m --data.dataset d",
    "serve-rm": "--reward.model_name_or_path m",
}


def other_value(flag: Flag) -> list[str]:
    """A value of the flag's type that is not its default."""
    if flag.is_bool:
        return [str(not flag.default).lower()]
    if "|" in flag.type_name:
        return [next(item for item in flag.type_name.split("|") if item != str(flag.default))]
    count = max(flag.arity[0], 1)
    return ["7" if "text" not in flag.type_name else "other"] * count


@pytest.mark.parametrize("command", TREES)
def test_what_is_not_here_is_refused_by_name(command: str):
    for flag in flags_of(TREES[command]).values():
        if flag.refused:
            with pytest.raises(ConfigError, match=re.escape(f"--{flag.path} ")) as caught:
                parse(command, [*REQUIRED[command].split(), f"--{flag.path}", *other_value(flag)])
            assert flag.refused in str(caught.value)
        for value, reason in flag.refused_values.items():
            with pytest.raises(ConfigError, match=re.escape(reason)):
                parse(command, [*REQUIRED[command].split(), f"--{flag.path}", value])


@pytest.mark.parametrize("command", TREES)
def test_their_defaults_given_as_flags_are_taken(command: str):
    """A script that spells out OpenRLHF's defaults works, but for the listed differences."""
    ours, argv = flags_of(TREES[command]), REQUIRED[command].split()
    differ = {path for _, path, _ in DIFFERENCES}
    for path, row in theirs(command).items():
        default = their_default(row)
        if default is not None and path not in differ and path != "actor.num_gpus_per_node":
            values = default if isinstance(default, list) else [default]
            argv += [f"--{path}", *map(str, values)]
    config = parse(command, argv).config
    assert all(get(config, path) == ours[path].default for path in ("train.batch_size", "train.seed") if path in ours)
    assert config.device.type == "auto"
