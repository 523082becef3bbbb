"""What can be changed to make a run fit, from what costs nothing to other training and more hardware.

A move looks at the run as it stands and offers one flag's other values, or None where it does not apply.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openrlhf_ext.config import get
from openrlhf_ext.plan.engines import engine_memory, misfit
from openrlhf_ext.plan.offers import COPIES, Move, Offer, divisors_below, halves_of, in_seconds, offer, round_trip
from openrlhf_ext.plan.parameters import total_parameters, trainable_parameters
from openrlhf_ext.plan.speed import ADAM_BYTES, HOST_LINK, HOST_MEMORY
from openrlhf_ext.plan.types import BYTES, EngineRun, Hardware, ModelRun, Role, Setup

SHORTEST = 256
"""Tokens below which a shorter length is no help that anyone wants."""
LEAST_RANK = 8
LEAST_CHUNK, MOST_CHUNKS = 128, 128
"""Positions of a chunk, and chunks of a micro-batch, that a smaller chunk is offered for."""
LEAST_SHARE, FEW = 0.1, 32
"""Of a GPU, for an engine; and sequences that it should write at a time, not to be slow."""


def smaller_micro_batch(setup: Setup) -> Offer | None:
    train = setup.config.train
    if setup.command == "rl" and train.dynamic_batch_enable:
        return None
    ranks = _trained(setup).ranks

    def costs(values: dict[str, Any]) -> str:
        parts = train.batch_size // (values["train.micro_batch_size"] * ranks)
        return f"{parts} smaller passes for a step instead of {train.batch_size // (train.micro_batch_size * ranks)}"

    return offer("train.micro_batch_size", divisors_below(train.micro_batch_size), costs)


def smaller_token_budget(setup: Setup) -> Offer | None:
    config = setup.config
    if setup.command != "rl" or not config.train.dynamic_batch_enable:
        return None
    budgets = halves_of(config.train.max_tokens_per_gpu, config.data.max_len)
    return offer("train.max_tokens_per_gpu", budgets, lambda values: "more, smaller passes for a step")


def smaller_inference_batch(setup: Setup) -> Offer | None:
    config = setup.config
    if setup.command != "rl":
        return None
    words = "more, smaller passes for log-probs"
    if not config.train.dynamic_batch_enable:
        sizes = halves_of(config.rollout.micro_batch_size, 1)
        return offer("rollout.micro_batch_size", sizes, lambda values: words)
    if config.rollout.max_tokens_per_gpu is None:
        return None
    budgets = halves_of(config.rollout.max_tokens_per_gpu, config.data.max_len)
    return offer("rollout.max_tokens_per_gpu", budgets, lambda values: words)


def smaller_chunk(setup: Setup) -> Offer | None:
    positions = max((one.selected for one in _trained(setup).passes), default=0)
    # With so many chunks their logits are a small part of what there is.
    sizes = halves_of(setup.config.ds.logprob_chunk_size, max(LEAST_CHUNK, positions // MOST_CHUNKS))
    return offer("ds.logprob_chunk_size", sizes, lambda values: "smaller products with the LM head, next to nothing")


def shared_gpus(setup: Setup) -> Offer | None:
    """Roles take turns where there are too few GPUs for each to have its own."""
    train, hardware = setup.config.train if setup.command == "rl" else None, setup.hardware
    if train is None or train.colocate_all or train.async_enable or not hardware.on_gpu:
        return None
    if sum(setup.pools.values()) <= hardware.count * hardware.nodes:
        return None
    return offer("train.colocate_all", [True], lambda values: "roles take turns instead of having GPUs of their own")


def sleeping_engines(setup: Setup) -> Offer | None:
    return _sleep(setup, "vllm.enable_sleep", [run for run in setup.engines if run.role == "engines"])


def sleeping_judge(setup: Setup) -> Offer | None:
    return _sleep(setup, "judge.enable_sleep", [run for run in setup.engines if run.role == "judge"])


def sleeping_models(setup: Setup) -> Offer | None:
    if setup.command != "rl" or setup.config.ds.enable_sleep or not setup.config.train.colocate_all:
        return None
    moved = sum(_state_bytes(model) for model in setup.models)
    return offer("ds.enable_sleep", [True], lambda values: f"about {round_trip(moved)} a step to and from the host")


def engine_share(setup: Setup) -> Offer | None:
    return _share(setup, "engines", FEW)


def judge_share(setup: Setup) -> Offer | None:
    return _share(setup, "judge", FEW)


def least_engine_share(setup: Setup) -> Offer | None:
    return _share(setup, "engines", 1)


def least_judge_share(setup: Setup) -> Offer | None:
    return _share(setup, "judge", 1)


def wider_engines(setup: Setup) -> Offer | None:
    return _wider(setup, "engines")


def wider_judge(setup: Setup) -> Offer | None:
    return _wider(setup, "judge")


def cache_without_gpu(setup: Setup) -> Offer | None:
    """On a CPU the cache is as large as a flag says, and may not hold a sequence."""
    if setup.hardware.on_gpu or all(misfit(run, setup.hardware) is None for run in setup.engines):
        return None
    size = setup.config.vllm.kv_cache_gb
    while size < 1024:
        size *= 2
        runs = (replace(run, kv_cache_bytes=int(size * 2**30)) for run in setup.engines)
        if all(misfit(run, setup.hardware) is None for run in runs):
            return offer("vllm.kv_cache_gb", [size], lambda values: "memory: the cache holds no sequence as it is")
    return None


def checkpointing(setup: Setup) -> Offer | None:
    section = "actor" if setup.command == "rl" else "model"
    if getattr(setup.config, section).gradient_checkpointing_enable:
        return None
    words = "about 30 % more time in training, for a second forward pass"
    return offer(f"{section}.gradient_checkpointing_enable", [True], lambda values: words)


def more_sharding(setup: Setup) -> Offer | None:
    asked, model = setup.config.ds.zero_stage, _trained(setup)
    stages = [stage for stage in (1, 2, 3) if stage > max(asked, model.zero_stage if asked else 0)]
    if model.ranks == 1:
        return None

    def costs(values: dict[str, Any]) -> str:
        if values["ds.zero_stage"] < 3:
            return "gradients are reduced to their shards, next to nothing"
        return "weights are gathered layer by layer: half as much again over the link"

    return offer("ds.zero_stage", stages, costs)


def reference_elsewhere(setup: Setup) -> Offer | None:
    """DPO's second model, where there is one: the base under the adapters, or log-probs computed before training."""
    if setup.command != "dpo" or not any(model.role == "reference" for model in setup.models):
        return None
    own = setup.config.ref.model_name_or_path
    strategy = "base" if setup.config.ds.lora.rank and not own else "cached"
    words = {
        "base": "nothing: it is the model without its adapters",
        "cached": "one forward pass over all pairs before",
    }
    return offer("ref.strategy", [strategy], lambda values: words[values["ref.strategy"]])


def offloaded_reference(setup: Setup) -> Offer | None:
    return _offloaded(setup, "reference", "ref.offload")


def offloaded_reward(setup: Setup) -> Offer | None:
    return _offloaded(setup, "reward", "reward.offload")


def offloaded_optimizer(setup: Setup) -> Offer | None:
    if setup.config.ds.adam_offload or not setup.hardware.on_gpu:
        return None
    model = _trained(setup)
    share = trainable_parameters(model) / model.ranks
    size = BYTES[model.dtype]
    # Gradients leave and weights come back; the ranks of a machine share its memory.
    step = share * min(model.ranks, setup.hardware.count) * ADAM_BYTES / HOST_MEMORY
    seconds = (share * 2 * size / HOST_LINK + step) / COPIES
    words = f"about {in_seconds(seconds)} for each optimizer step, which runs on the host"
    values = {"ds.adam_offload": True}
    if get(setup.config, path := _eight_bit(setup)):
        values[path] = False  # moments in 8 bits stay on the GPU
    return Offer((values,), lambda values: words)


def moments_in_8_bits(setup: Setup) -> Offer | None:
    path = _eight_bit(setup)
    if get(setup.config, path) or setup.config.ds.adam_offload:
        return None
    words = "the optimizer's moments are rounded to 8 bits"
    return offer(path, [True], lambda values: words, same_result=False)


def adapters(setup: Setup) -> Offer | None:
    if setup.config.ds.lora.rank:
        return None
    words = "adapters are trained instead of all weights, with a learning rate about ten times as high"
    return Offer(({"ds.lora.rank": 16, "ds.lora.alpha": 32},), lambda values: words, same_result=False)


def four_bits(setup: Setup) -> Offer | None:
    ds = setup.config.ds
    if ds.load_in_4bit or not ds.lora.rank:
        return None
    words = "weights under the adapters are rounded to 4 bits, and unpacked in every pass"
    instead = {"ds.load_in_8bit": False} if ds.load_in_8bit else {}
    return Offer(({"ds.load_in_4bit": True} | instead,), lambda values: words, same_result=False)


def smaller_rank(setup: Setup) -> Offer | None:
    lora = setup.config.ds.lora
    levels = tuple(
        {"ds.lora.rank": rank, "ds.lora.alpha": lora.alpha * rank // lora.rank}
        for rank in halves_of(lora.rank, LEAST_RANK)
        if lora.alpha * rank // lora.rank >= 1
    )
    return Offer(levels, lambda values: "smaller adapters, which can learn less", same_result=False) if levels else None


def shorter_rows(setup: Setup) -> Offer | None:
    config = setup.config
    lengths = halves_of(config.data.max_len, SHORTEST)
    if setup.command == "rl" and (answer := config.rollout.max_new_tokens) is not None:
        levels = [
            {"data.max_len": length, "rollout.max_new_tokens": answer * length // config.data.max_len}
            for length in lengths
        ]
    else:
        levels = [{"data.max_len": length} for length in lengths]
    if not levels:
        return None
    return Offer(tuple(levels), lambda values: "longer rows are cut, or left out", same_result=False)


def more_gpus(setup: Setup) -> Offer | None:
    section = "actor" if setup.command == "rl" else "model"
    path, there = f"{section}.num_gpus_per_node", setup.hardware.count
    if not setup.hardware.on_gpu or (setup.command == "rl" and not setup.config.train.colocate_all):
        return None
    counts = [count for count in (2, 4, 8) if count > max(there, _trained(setup).ranks // setup.hardware.nodes)]

    def costs(values: dict[str, Any]) -> str:
        more = values[path] - there
        return f"{more} more GPU{'s' * (more > 1)} on each machine (--device.count)"

    return offer(path, counts, costs)


GROUPS: tuple[tuple[Move, ...], ...] = (
    (smaller_chunk, smaller_micro_batch, smaller_token_budget, smaller_inference_batch),
    (shared_gpus, sleeping_engines, sleeping_judge, sleeping_models, engine_share, judge_share),
    (wider_engines, wider_judge, cache_without_gpu),
    (reference_elsewhere, more_sharding, checkpointing),
    (offloaded_reward, offloaded_reference, offloaded_optimizer, least_engine_share, least_judge_share),
    (moments_in_8_bits, adapters, four_bits),
    (smaller_rank,),
    (shorter_rows,),
    (more_gpus, more_sharding),
)
"""From the cheapest: no group is asked before those above it have given all they can."""

CHOSEN_ALONE: frozenset[Move] = frozenset({*GROUPS[0], *GROUPS[1][1:], cache_without_gpu, checkpointing, *GROUPS[4]})
"""What `--memory.auto` may do: the same is trained, on the same GPUs, and resumes from the same checkpoints."""


def _sleep(setup: Setup, path: str, engines: list[EngineRun]) -> Offer | None:
    if setup.command != "rl" or not engines or not setup.config.train.colocate_all or setup.config.train.async_enable:
        return None
    if getattr(setup.config, path.partition(".")[0]).enable_sleep:
        return None
    moved = sum(total_parameters(_as_model(run)) * BYTES[run.dtype] for run in engines)
    return offer(path, [True], lambda values: f"about {round_trip(moved)} a step to and from the host")


def _share(setup: Setup, role: Role, sequences: int) -> Offer | None:
    """A smaller share of a GPU for engines, as long as their cache holds so many sequences, or all they are sent."""
    run = next((run for run in setup.engines if run.role == role), None)
    if run is None or not setup.hardware.on_gpu:
        return None
    path = "judge.gpu_memory_utilization" if role == "judge" else "vllm.gpu_memory_utilization"
    wanted = min(sequences, run.sequences)
    shares = [round(LEAST_SHARE + 0.05 * number, 2) for number in range(18)]
    able = [share for share in shares if _holds(replace(run, utilization=share), setup.hardware, wanted)]
    if misfit(run, setup.hardware) is not None:
        return offer(path, able[:1], lambda values: "memory for others: its cache holds no sequence as it is")
    smaller = [share for share in reversed(able) if share < run.utilization]
    return offer(path, smaller, lambda values: "a smaller cache, so fewer sequences are written at a time")


def _wider(setup: Setup, role: Role) -> Offer | None:
    """More GPUs for an engine that one cannot hold; those that share GPUs with training take one (`cli.rl_roles`)."""
    run = next((run for run in setup.engines if run.role == role), None)
    if run is None or misfit(run, setup.hardware) is None or run.pool == _trained(setup).pool:
        return None
    counts = [count for count in (2, 4, 8) if run.tensor_parallel < count <= setup.hardware.count]
    able = [count for count in counts if run.shape.heads % count == 0]
    able = [count for count in able if _holds(replace(run, tensor_parallel=count), setup.hardware, 1)]
    path = "judge.tensor_parallel_size" if role == "judge" else "vllm.tensor_parallel_size"
    return offer(path, able[:1], lambda values: f"engines of {values[path]} GPUs each, which pass activations on")


def _holds(run: EngineRun, hardware: Hardware, sequences: int) -> bool:
    return misfit(run, hardware) is None and engine_memory(run, hardware).sequences >= sequences


def _offloaded(setup: Setup, role: Role, path: str) -> Offer | None:
    model = next((model for model in setup.models if model.role == role), None)
    if model is None or model.param_offload or setup.command != "rl" or not setup.hardware.on_gpu:
        return None
    config = setup.config
    passes = config.rollout.batch_size * config.rollout.n_samples_per_prompt / model.ranks
    if not config.train.dynamic_batch_enable:
        passes = max(passes / config.rollout.micro_batch_size, 1)
    seconds = passes * total_parameters(model) * BYTES[model.dtype] / (HOST_LINK * COPIES)
    words = f"about {in_seconds(seconds)} a step: its weights come from the host in every pass"
    return offer(path, [True], lambda values: words)


def _eight_bit(setup: Setup) -> str:
    return "actor.adam.eight_bit" if setup.command == "rl" else "adam.eight_bit"


def _trained(setup: Setup) -> ModelRun:
    return next(model for model in setup.models if model.role in ("policy", "model"))


def _as_model(run: EngineRun) -> ModelRun:
    return ModelRun(run.role, run.shape, "causal_lm", False, run.tensor_parallel, run.pool)


def _state_bytes(model: ModelRun) -> int:
    """Of a rank, about: what goes to the host when it sleeps."""
    shards = model.ranks if model.zero_stage else 1
    weights = total_parameters(model) * BYTES[model.dtype] // (model.ranks if model.zero_stage == 3 else 1)
    return weights + 12 * trainable_parameters(model) // shards * (not model.adam_offload)
