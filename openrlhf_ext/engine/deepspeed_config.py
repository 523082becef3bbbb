"""An EngineSpec in DeepSpeed's own words."""

from __future__ import annotations

from typing import Any

from openrlhf_ext.engine.spec import EngineSpec

REDUCE_BUCKET_ELEMENTS = 100_000_000
"""Gradients travel in buckets of this size (400 MB in float32); DeepSpeed's default takes 2 GB per rank."""


def effective_stage(spec: EngineSpec) -> int:
    """The ZeRO stage that DeepSpeed runs: at least the one asked for, with the same arithmetic.

    A frozen model is sharded (3) or whole (0). Half precision runs at stage 1 or above, where the master
    weights are float32 (DeepSpeed's plain half-precision optimizer gives float16 no loss scale), and so
    does an optimizer on the CPU; bf16 with float32 accumulation at stage 3, for below it DeepSpeed adds the
    gradients of micro-batches up in bf16 all the same, where after some hundred of them nothing is added any more.
    """
    if not spec.trainable:
        return 3 if spec.zero_stage == 3 or spec.param_offload else 0
    if spec.dtype == "bf16" and spec.grad_accum_dtype == "fp32":
        return 3
    if spec.dtype != "fp32" or spec.adam_offload:
        return max(spec.zero_stage, 1)
    return spec.zero_stage


def deepspeed_config(spec: EngineSpec, world_size: int, hidden_size: int, *, ordered: bool) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize` (and, at stage 3, for transformers while it loads).

    `ordered` says that collectives end in the order in which they began (`Device.ordered_collectives`).
    """
    stage = effective_stage(spec)
    on_cpu = {"device": "cpu", "pin_memory": True}
    zero: dict[str, Any] = {
        "stage": stage,
        # Without managed accumulation DeepSpeed cannot overlap what it only reduces in `step`.
        "overlap_comm": spec.overlap_comm and stage >= 2,
        "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS,
        "round_robin_gradients": stage == 2,
    }
    if spec.adam_offload:
        zero["offload_optimizer"] = on_cpu
    if stage == 3:
        # Norms and biases stay whole on every rank; matrices do not, however small the model.
        zero["stage3_param_persistence_threshold"] = 10 * hidden_size
        zero["zero_hpz_partition_size"] = spec.zpg
        # DeepSpeed waits for the last of several gathers only, and would read weights that have not arrived.
        zero["stage3_allgather_sequential"] = not ordered
        if not ordered:
            # DeepSpeed turns this off itself for a model in training; a frozen one would compute with empty weights.
            zero["stage3_prefetch_bucket_size"] = 0
        if spec.param_offload:
            zero["offload_param"] = on_cpu
    config: dict[str, Any] = {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # `step` is the boundary, after however many backward passes: nobody has to announce the last one.
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if stage == 0 else spec.max_norm,  # stage 0: see _clip in the engine
        "zero_optimization": zero,
        "bf16": {"enabled": spec.dtype == "bf16"},
        "fp16": {"enabled": spec.dtype == "fp16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if spec.grad_accum_dtype is not None:
        config["data_types"] = {"grad_accum_dtype": spec.grad_accum_dtype}
    return config
