"""From the rl command's config to its roles: which models run where, on how many ranks, with which engines."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from openrlhf_ext.cli.rl_agent import agent_settings, caches_prefixes
from openrlhf_ext.cli.rl_judge import name_of_weights
from openrlhf_ext.cli.specs import engine_spec, frozen_engine_spec, model_path, model_spec, split_settings
from openrlhf_ext.cluster.build import EngineRole, JudgeRole, Role, RolesSpec, TrainedRole
from openrlhf_ext.cluster.session import RaySettings
from openrlhf_ext.config import Parsed, RLConfig
from openrlhf_ext.config.judge import longest_judgement
from openrlhf_ext.config.rules import accumulation
from openrlhf_ext.cores import threads_for
from openrlhf_ext.device import Device
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.models.load import load_config
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.plan.shapes import find_shape
from openrlhf_ext.rollout.transfer import choose_transport
from openrlhf_ext.rollout.vllm_engine import EngineSettings
from openrlhf_ext.track.checkpoints import CheckpointContent

logger = logging.getLogger(__name__)

RANK_OWNERS: tuple[Role, ...] = ("actor", "critic")
VLLM_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True)
class Schedule:
    """Optimizer steps of the whole run, which the learning rates follow."""

    policy: int
    critic: int


def roles_spec(parsed: Parsed, device: Device, schedule: Schedule) -> RolesSpec:
    """Every role of the run.

    Raises:
        ConfigError: engines of several GPUs that should share GPUs with training, more engines than training
            ranks to share with, or a batch that the ranks cannot share evenly.
    """
    cfg: RLConfig = parsed.config
    pools = pools_of(cfg)
    engines_share = pools.get("vllm") is not None
    _say_what_a_cpu_ignores(parsed, device)
    _check_engines(cfg, device, engines_share, ranks_of(parsed, "actor", device))
    budget = None
    if cfg.train.dynamic_batch_enable:
        budget = cfg.rollout.max_tokens_per_gpu or cfg.train.max_tokens_per_gpu
    kl, lora = cfg.algo.kl.init_coef > 0.0, cfg.ds.lora.rank > 0
    return RolesSpec(
        device=device,
        policy=_trained(parsed, "actor", device, schedule.policy),
        # The base under a policy's adapters is its reference; it needs no processes of its own.
        reference=_frozen(parsed, "ref", device) if kl and not lora else None,
        reference_is_base=kl and lora,
        critic=_trained(parsed, "critic", device, schedule.critic) if cfg.has_critic else None,
        reward=_frozen(parsed, "reward", device) if cfg.has_reward_model else None,
        student=_frozen(parsed, "student", device) if cfg.student.model_name_or_path else None,
        judge=_judge(cfg, device) if cfg.judge.model_name_or_path else None,
        engines=_engines(parsed, device, engines_share, ranks_of(parsed, "actor", device)),
        split=split_settings(cfg.rollout.micro_batch_size, budget, packed=cfg.ds.packing_samples),
        pools=pools,
        overlapping=cfg.train.async_enable,
    )


def model_specs(parsed: Parsed, device: Device) -> list[ModelSpec]:
    """Every model that is loaded, as far as its files are concerned; the reference is the policy's."""
    cfg: RLConfig = parsed.config
    roles: list[Role] = ["actor"]
    roles += ["critic"] if cfg.has_critic else []
    roles += ["reward"] if cfg.has_reward_model else []
    roles += ["student"] if cfg.student.model_name_or_path else []
    return [_model(parsed, role, device) for role in roles]


def _check_engines(cfg: RLConfig, device: Device, share: bool, actor_ranks: int) -> None:
    if share and cfg.vllm.tensor_parallel_size > 1:
        raise ConfigError(
            f"--vllm.tensor_parallel_size {cfg.vllm.tensor_parallel_size} with --train.colocate_all: an engine that "
            "shares GPUs with training takes one of them; leave out one of the two flags."
        )
    if choose_transport(device, share) == "ipc" and cfg.vllm.num_engines > actor_ranks:
        raise ConfigError(
            f"--vllm.num_engines {cfg.vllm.num_engines} with --train.colocate_all: an engine gets its weights from the "
            f"policy's rank on its GPU, and there are {actor_ranks}; give --vllm.num_engines {actor_ranks} or less."
        )


def model_name(cfg: RLConfig, role: Role) -> str:
    """The model that a role loads; the critic starts from the reward model where all rewards are that model's."""
    policy, reward = cfg.actor.model_name_or_path, cfg.reward.model_name_or_path
    of_critic = cfg.critic.model_name_or_path or (reward if cfg.reward.remote_url is None else policy)
    name = {"reward": reward, "critic": of_critic, "student": cfg.student.model_name_or_path}.get(role, policy)
    assert name is not None
    return name


def _model(parsed: Parsed, role: Role, device: Device) -> ModelSpec:
    cfg: RLConfig = parsed.config
    explicit = "ds.attn_implementation" in parsed.explicit
    path = model_name(cfg, role)
    spec = model_spec(path, cfg.actor, cfg.ds, device, explicit=explicit)
    if role == "critic":
        return replace(spec, kind="value", value_head=cfg.ds.value_head_prefix)
    if role == "reward":
        head, normalize = cfg.ds.value_head_prefix, cfg.reward.normalize_enable
        spec = replace(spec, kind="reward", value_head=head, normalize=normalize)
    if role in ("reward", "student"):
        return replace(spec, lora=None, load_in_4bit=False, load_in_8bit=False)
    return replace(spec, served=True)


def _trained(parsed: Parsed, role: Role, device: Device, optimizer_steps: int) -> TrainedRole:
    cfg: RLConfig = parsed.config
    ranks = ranks_of(parsed, role, device)
    if not cfg.train.dynamic_batch_enable:
        for violation in accumulation(cfg.train.batch_size, cfg.train.micro_batch_size, ranks):
            raise ConfigError(str(violation))
    engine = engine_spec(
        getattr(cfg, role),
        cfg.ds,
        total_steps=optimizer_steps,
        seed=cfg.train.seed,
        exact=cfg.train.full_determinism_enable,
    )
    content = CheckpointContent(state=not cfg.ckpt.disable_ds, model=cfg.ckpt.save_hf)
    if role == "critic":
        content = replace(content, model=content.model and cfg.critic.save_value_network)
    return TrainedRole(
        ranks,
        _model(parsed, role, device),
        engine,
        _threads(cfg, ranks, beside=cfg.vllm.num_engines),
        sleeps=cfg.ds.enable_sleep,
        content=content,
    )


def _frozen(parsed: Parsed, role: Role, device: Device) -> TrainedRole:
    cfg: RLConfig = parsed.config
    ranks = ranks_of(parsed, role, device)
    engine = frozen_engine_spec(
        cfg.ds,
        offload=getattr(cfg, role).offload,
        seed=cfg.train.seed,
        exact=cfg.train.full_determinism_enable,
    )
    threads = _threads(cfg, ranks, beside=cfg.vllm.num_engines)
    return TrainedRole(ranks, _model(parsed, role, device), engine, threads, sleeps=cfg.ds.enable_sleep)


def _threads(cfg: RLConfig, processes: int, *, beside: int) -> int:
    """Of each process of a role. Roles take turns on the cores, but engines and models do not under async."""
    return threads_for(processes + (beside if cfg.train.async_enable else 0))


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


def ranks_of(parsed: Parsed, role: Role, device: Device) -> int:
    """Ranks of a role: as asked for, or what the default becomes on this device."""
    pools = pools_of(parsed.config)
    if role in pools:  # the roles of a shared GPU have the same ranks, those of the first of them
        role = next(other for other in RANK_OWNERS if pools.get(other) == pools[role])
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
        shared: tuple[Role, ...] = ("actor", "ref", "critic", "reward", "student")
        return dict.fromkeys(shared if train.async_enable else (*shared, "vllm", "judge"), "all")
    pools: dict[Role, str] = {}
    if train.colocate_actor_ref:
        pools |= {"actor": "actor_ref", "ref": "actor_ref"}
    if train.colocate_critic_reward:
        pools |= {"critic": "critic_reward", "reward": "critic_reward"}
    return pools


def _engines(parsed: Parsed, device: Device, share: bool, actor_ranks: int) -> EngineRole:
    cfg: RLConfig = parsed.config
    vllm = cfg.vllm
    assert cfg.actor.model_name_or_path is not None
    settings = EngineSettings(
        model=model_path(cfg.actor.model_name_or_path),
        transport=choose_transport(device, share),
        max_model_len=cfg.data.max_len,
        dtype=VLLM_DTYPES[cfg.ds.param_dtype],  # type: ignore[arg-type]
        seed=cfg.train.seed,
        enable_prefix_caching=caches_prefixes(parsed),
        tensor_parallel_size=vllm.tensor_parallel_size,
        gpu_memory_utilization=vllm.gpu_memory_utilization,
        enforce_eager=vllm.enforce_eager,
        enable_sleep=vllm.enable_sleep,
        kv_cache_gb=vllm.kv_cache_gb,
        partial=cfg.train.partial_rollout_enable,
        agent=agent_settings(cfg),
    )
    threads = vllm.threads or _threads(cfg, vllm.num_engines, beside=actor_ranks)
    return EngineRole(vllm.num_engines, settings, threads, vllm.sync_bucket_mb * 1_000_000)


def _positions(path: str) -> int | None:
    """Tokens that a model can read, where its config says."""
    try:
        return find_shape(path).positions
    except ConfigError:  # a hub name that is not here yet: its config is fetched
        positions: int | None = getattr(load_config(path).get_text_config(), "max_position_embeddings", None)
        return positions


def _judge(cfg: RLConfig, device: Device) -> JudgeRole:
    judge = cfg.judge
    assert judge.model_name_or_path is not None
    path, dtype = model_path(judge.model_name_or_path), VLLM_DTYPES[cfg.ds.param_dtype]
    settings = EngineSettings(
        model=path,
        transport=None,
        role="judge",
        max_model_len=longest_judgement(cfg, _positions(path)),
        dtype=dtype,  # type: ignore[arg-type]
        seed=cfg.train.seed,
        tensor_parallel_size=judge.tensor_parallel_size,
        gpu_memory_utilization=judge.gpu_memory_utilization,
        enforce_eager=judge.enforce_eager,
        enable_sleep=judge.enable_sleep,
        kv_cache_gb=judge.kv_cache_gb,
    )
    # Engines and models take turns on the cores, but not under async.
    threads = judge.threads or _threads(cfg, judge.num_engines, beside=cfg.vllm.num_engines)
    return JudgeRole(judge.num_engines, settings, threads, name_of_weights(path, dtype))


def _say_what_a_cpu_ignores(parsed: Parsed, device: Device) -> None:
    """A command written for a GPU runs unchanged on a CPU; what has no meaning there is said."""
    if device.can("sleep"):
        return
    for path in ("vllm.enable_sleep", "ds.enable_sleep", "judge.enable_sleep"):
        if path in parsed.explicit:
            logger.warning("--%s: there is no GPU memory to give back on this %s.", path, device.kind)
