"""Traps of ranks, engines, sharding and kernels."""

from __future__ import annotations

from openrlhf_ext.plan.traps.case import Case, Trap, gb
from openrlhf_ext.plan.types import EngineRun, ModelRun

QUADRATIC_FROM = 4096
"""Tokens from which on a score for every pair of them is worth a word."""


def colocated_without_sleep(case: Case) -> str | None:
    if not _colocated(case):
        return None
    missing = ["--vllm.enable_sleep"] * (not case.config.vllm.enable_sleep)
    missing += ["--ds.enable_sleep"] * (not case.config.ds.enable_sleep)
    if case.config.judge.model_name_or_path and not case.config.judge.enable_sleep:
        missing.append("--judge.enable_sleep")
    if not missing:
        return None
    return (
        f"--train.colocate_all without {' and '.join(missing)}: what waits for its turn keeps its memory; add "
        f"{'it' if len(missing) == 1 else 'them'}."
    )


def colocated_engines_take_all(case: Case) -> str | None:
    if not _colocated(case) or case.config.vllm.gpu_memory_utilization <= 0.9:
        return None
    used = case.config.vllm.gpu_memory_utilization
    asleep = ", and what is left in memory of those asleep" if case.config.ds.enable_sleep else ""
    return (
        f"--vllm.gpu_memory_utilization {used:g} with --train.colocate_all leaves {100 * (1 - used):.0f} % of the GPU "
        f"to the contexts of the other processes{asleep}; give 0.75."
    )


def idle_ranks(case: Case) -> str | None:
    batch, left = case.config.train.batch_size, case.arithmetic.leftover_rows or 0
    if case.rl and case.config.data.drop_last:
        left = 0
    last = left * case.answers_per_row % batch
    for model in case.setup.models:
        if model.trainable and model.ranks > batch:
            return (
                f"--train.batch_size {batch} on {model.ranks} ranks: {model.ranks - batch} have nothing to do in any "
                f"step; give a multiple of {model.ranks}."
            )
        if model.trainable and 0 < last < model.ranks:
            remedy = "--data.drop_last" if case.rl else f"--data.max_samples {(case.data.rows or left) - left}"
            return (
                f"The last batch of an epoch has {last} sequences for {model.ranks} ranks, of which "
                f"{model.ranks - last} have nothing to do; give {remedy} to leave it out."
            )
    return None


def idle_engines(case: Case) -> str | None:
    engines = next((run for run in case.setup.engines if run.role == "engines"), None)
    if engines is None or case.config.rollout.batch_size >= engines.count:
        return None
    return (  # the answers to a prompt are written by one engine
        f"--rollout.batch_size {case.config.rollout.batch_size} is less than the {engines.count} engines, of which "
        f"some have nothing to do; give --vllm.num_engines {case.config.rollout.batch_size} or less."
    )


def engines_beyond_the_policy(case: Case) -> str | None:
    """What `cli.rl_roles` refuses where engines share the policy's GPUs."""
    vllm, shared = case.config.vllm if case.rl else None, _colocated(case)
    if vllm is None or not shared:
        return None
    if vllm.tensor_parallel_size > 1:
        return (
            f"--vllm.tensor_parallel_size {vllm.tensor_parallel_size} with --train.colocate_all: an engine that shares "
            "GPUs with training takes one of them, and the run will not start; leave out one of the two flags."
        )
    if vllm.num_engines > case.trained.ranks:
        return (
            f"--vllm.num_engines {vllm.num_engines} with --train.colocate_all: there are {case.trained.ranks} ranks to "
            f"share GPUs with, and the run will not start; give {case.trained.ranks} or less."
        )
    return None


def gpus_left_over(case: Case) -> str | None:
    hardware = case.setup.hardware
    there, used = hardware.count * hardware.nodes, sum(case.setup.pools.values())
    if not hardware.on_gpu or used >= there:
        return None
    flag = f"--{case.section}.num_gpus_per_node" if not case.rl else "--actor.num_gpus_per_node or --vllm.num_engines"
    return f"{there - used} of the {there} GPUs are not used; raise {flag}, or ask for {used}."


def stage_3_on_one_rank(case: Case) -> str | None:
    if case.trained.ranks > 1 or case.trained.zero_stage < 3 or case.trained.grad_accum_dtype == "fp32":
        return None  # sums in float32 are stage 3's alone
    return (
        "--ds.zero_stage 3 on one rank shards nothing and gathers every layer all the same; give --ds.zero_stage 2, "
        "which trains the same."
    )


def stage_is_raised(case: Case) -> str | None:
    asked, runs = case.config.ds.zero_stage, case.trained.zero_stage
    if "ds.zero_stage" not in case.explicit or asked == runs:
        return None
    why = "gradients are summed in float32" if runs == 3 else "float32 master weights begin"
    return (
        f"--ds.zero_stage {asked} runs as stage {runs}, where {why}; give --ds.zero_stage {runs}, or --ds.param_dtype "
        "fp32 for stage 0."
    )


def packed_without_varlen(case: Case) -> str | None:
    model = case.trained
    if not model.packing or model.attention not in ("sdpa", "eager") or case.card is None:
        return None
    tokens = max((item.tokens for item in model.passes if item.rows > 1), default=0)
    if not tokens:
        return None
    mask = f"a mask of {tokens} x {tokens} tokens ({gb(tokens * tokens)})"
    remedy = "give torch_varlen" if case.card.bf16 else "leave --ds.packing_samples out"
    return (
        f"--ds.packing_samples with --ds.attn_implementation {model.attention}: every token of a packed row meets "
        f"every other one, through {mask}; {remedy}."
    )


def eager_attention_of_long_rows(case: Case) -> str | None:
    model, longest = case.trained, max((item.length for item in case.trained.passes), default=0)
    if model.attention != "eager" or longest < QUADRATIC_FROM:
        return None
    scores = longest * longest * model.shape.heads * 4
    return (
        f"--ds.attn_implementation eager keeps {gb(scores)} of scores for each layer and row of {longest} tokens; give "
        "sdpa or flash_attention_2."
    )


def budget_below_one_row(case: Case) -> str | None:
    if not case.rl or not case.config.train.dynamic_batch_enable:
        return None
    budget, longest = case.config.train.max_tokens_per_gpu, case.config.data.max_len
    if budget >= longest:
        return None
    return (
        f"--train.max_tokens_per_gpu {budget} is less than one row of --data.max_len {longest}, which is then a "
        f"micro-batch of its own all the same; give {longest} or more."
    )


def _colocated(case: Case) -> bool:
    return case.rl and case.card is not None and bool(_sharing(case))


def _sharing(case: Case) -> list[tuple[EngineRun, ModelRun]]:
    """Engines and models on the same GPUs."""
    return [(run, model) for run in case.setup.engines for model in case.setup.models if run.pool == model.pool]


PLACEMENT: tuple[Trap, ...] = (
    colocated_without_sleep,
    colocated_engines_take_all,
    idle_ranks,
    idle_engines,
    engines_beyond_the_policy,
    gpus_left_over,
    stage_3_on_one_rank,
    stage_is_raised,
    packed_without_varlen,
    eager_attention_of_long_rows,
    budget_below_one_row,
)
