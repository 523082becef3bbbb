"""From the rl command's config to its roles: which models run where, on how many ranks, with which engines."""

from __future__ import annotations

import logging

from openrlhf_ext.cli.specs import engine_spec, frozen_engine_spec, model_path, model_spec, split_settings, threads_for
from openrlhf_ext.cluster.build import EngineRole, Role, RolesSpec, TrainedRole
from openrlhf_ext.cluster.roles import CheckpointContent
from openrlhf_ext.cluster.session import RaySettings
from openrlhf_ext.config import Parsed, RLConfig
from openrlhf_ext.config.rules import accumulation
from openrlhf_ext.device import Device
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.rollout.transfer import choose_transport
from openrlhf_ext.rollout.vllm_engine import EngineSettings

logger = logging.getLogger(__name__)

VLLM_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def roles_spec(parsed: Parsed, device: Device, optimizer_steps: int) -> RolesSpec:
    """Every role of the run. `optimizer_steps` is the length of the learning-rate schedule.

    Raises:
        ConfigError: engines of several GPUs that should share GPUs with training, more engines than training
            ranks to share with, or a batch that the ranks cannot share evenly.
    """
    cfg: RLConfig = parsed.config
    pools = pools_of(cfg)
    engines_share = pools.get("vllm") is not None
    if engines_share and cfg.vllm.tensor_parallel_size > 1:
        raise ConfigError(
            f"--vllm.tensor_parallel_size {cfg.vllm.tensor_parallel_size} with --train.colocate_all: an engine that "
            "shares GPUs with training takes one of them; leave out one of the two flags."
        )
    _say_what_a_cpu_ignores(parsed, device)
    exact, seed = cfg.train.full_determinism_enable, cfg.train.seed
    assert cfg.actor.model_name_or_path is not None
    model = model_spec(
        cfg.actor.model_name_or_path,
        cfg.actor,
        cfg.ds,
        device,
        explicit="ds.attn_implementation" in parsed.explicit,
    )
    actor_ranks = ranks_of(parsed, "actor", device)
    if choose_transport(device, engines_share) == "ipc" and cfg.vllm.num_engines > actor_ranks:
        raise ConfigError(
            f"--vllm.num_engines {cfg.vllm.num_engines} with --train.colocate_all: an engine gets its weights from the "
            f"policy's rank on its GPU, and there are {actor_ranks}; give --vllm.num_engines {actor_ranks} or less."
        )
    if not cfg.train.dynamic_batch_enable:
        for violation in accumulation(cfg.train.batch_size, cfg.train.micro_batch_size, actor_ranks):
            raise ConfigError(str(violation))
    trained = engine_spec(cfg.actor, cfg.ds, total_steps=optimizer_steps, seed=seed, exact=exact)
    reference = None
    if cfg.algo.kl.init_coef > 0.0:
        frozen = frozen_engine_spec(cfg.ds, offload=cfg.ref.offload, seed=seed, exact=exact)
        ref_ranks = ranks_of(parsed, "ref", device)
        reference = TrainedRole(ref_ranks, model, frozen, threads_for(ref_ranks), sleeps=cfg.ds.enable_sleep)
    budget = None
    if cfg.train.dynamic_batch_enable:
        budget = cfg.rollout.max_tokens_per_gpu or cfg.train.max_tokens_per_gpu
    return RolesSpec(
        device=device,
        policy=TrainedRole(
            actor_ranks,
            model,
            trained,
            threads_for(actor_ranks),
            sleeps=cfg.ds.enable_sleep,
            content=CheckpointContent(state=not cfg.ckpt.disable_ds, model=cfg.ckpt.save_hf),
        ),
        reference=reference,
        engines=_engines(cfg, device, engines_share),
        split=split_settings(cfg.rollout.micro_batch_size, budget, packed=cfg.ds.packing_samples),
        pools=pools,
    )


def ray_settings(cfg: RLConfig, spec: RolesSpec) -> RaySettings:
    """A Ray started here declares what the roles ask for: on a CPU processes take turns on the cores."""
    processes = sum(demand.processes for demand in spec.demands())
    return RaySettings(
        address=cfg.ray.address,
        bind=cfg.ray.bind,
        dashboard=cfg.ray.dashboard,
        dashboard_port=cfg.ray.dashboard_port,
        cpus=max(processes, threads_for(1)),
        gpus=spec.device.count,
    )


def ranks_of(parsed: Parsed, role: str, device: Device) -> int:
    """Ranks of the policy or the reference: as asked for, or what the default becomes on this device."""
    if role == "ref" and "ref" in pools_of(parsed.config):
        role = "actor"  # the roles of a shared GPU have the same ranks
    section = getattr(parsed.config, role)
    path = f"{role}.num_gpus_per_node"
    per_node = section.num_gpus_per_node
    there = max(device.count, 1)
    if path not in parsed.explicit and parsed.config.ray.address is None and there < per_node:
        what = f"{there} GPU{'s' if there > 1 else ''}" if device.count else "a CPU"
        logger.warning("--%s: the default %d becomes %d, this machine has %s.", path, per_node, there, what)
        per_node = there
    return section.num_nodes * per_node


def pools_of(cfg: RLConfig) -> dict[Role, str]:
    """Which roles share GPUs with which; a role that is not named has its own.

    Engines that generate while others train have GPUs of their own, as in OpenRLHF 0.11.2.
    """
    train = cfg.train
    if train.colocate_all:
        shared: tuple[Role, ...] = ("actor", "ref", "critic", "reward")
        return dict.fromkeys(shared if train.async_enable else (*shared, "vllm"), "all")
    pools: dict[Role, str] = {}
    if train.colocate_actor_ref:
        pools |= {"actor": "actor_ref", "ref": "actor_ref"}
    if train.colocate_critic_reward:
        pools |= {"critic": "critic_reward", "reward": "critic_reward"}
    return pools


def _engines(cfg: RLConfig, device: Device, share: bool) -> EngineRole:
    vllm = cfg.vllm
    assert cfg.actor.model_name_or_path is not None
    settings = EngineSettings(
        model=model_path(cfg.actor.model_name_or_path),
        transport=choose_transport(device, share),
        max_model_len=cfg.data.max_len,
        dtype=VLLM_DTYPES[cfg.ds.param_dtype],  # type: ignore[arg-type]
        seed=cfg.train.seed,
        enable_prefix_caching=vllm.enable_prefix_caching,
        tensor_parallel_size=vllm.tensor_parallel_size,
        gpu_memory_utilization=vllm.gpu_memory_utilization,
        enforce_eager=vllm.enforce_eager,
        enable_sleep=vllm.enable_sleep,
        kv_cache_gb=vllm.kv_cache_gb,
    )
    threads = vllm.threads or threads_for(vllm.num_engines)
    return EngineRole(vllm.num_engines, settings, threads, vllm.sync_bucket_mb * 1_000_000)


def _say_what_a_cpu_ignores(parsed: Parsed, device: Device) -> None:
    """A command written for a GPU runs unchanged on a CPU; what has no meaning there is said."""
    if device.can("sleep"):
        return
    for path in ("vllm.enable_sleep", "ds.enable_sleep"):
        if path in parsed.explicit:
            logger.warning("--%s: there is no GPU memory to give back on this %s.", path, device.kind)
