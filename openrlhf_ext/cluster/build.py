"""From a description of the run to living roles: reserve, start in parallel, meet, hand over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.cluster.generator import RemoteGenerator, engine_actor
from openrlhf_ext.cluster.phases import Part, Phases, Sleeper
from openrlhf_ext.cluster.placement import Demand, Slot, reserve
from openrlhf_ext.cluster.roles import CheckpointContent, RemotePolicy, RemoteReference
from openrlhf_ext.cluster.train_worker import EngineLinks
from openrlhf_ext.cluster.waits import gather
from openrlhf_ext.cluster.worker_group import WorkerGroup, worker_environment
from openrlhf_ext.device import Device
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.rollout.transfer import choose_transport
from openrlhf_ext.rollout.vllm_engine import EngineSettings, engine_environment

Sharing = Literal["none", "actor_ref", "all"]
SLOTS: dict[Part, str] = {"policy": "actor", "reference": "ref"}


@dataclass(frozen=True, slots=True)
class TrainedRole:
    """A worker group: how many ranks of which model under which engine, with so many threads each."""

    ranks: int
    model: ModelSpec
    engine: EngineSpec
    threads: int
    sleeps: bool = False


@dataclass(frozen=True, slots=True)
class EngineRole:
    """The vLLM engines. Bytes of one weight bucket; threads of each engine."""

    count: int
    settings: EngineSettings
    threads: int
    bucket_bytes: int


@dataclass(frozen=True, slots=True)
class RolesSpec:
    """All roles of a run. `split` cuts batches for log-probs; `sharing` says who shares GPUs with whom."""

    device: Device
    policy: TrainedRole
    reference: TrainedRole | None
    engines: EngineRole
    split: SplitSettings
    sharing: Sharing = "none"
    content: CheckpointContent = field(default_factory=CheckpointContent)

    def demands(self) -> list[Demand]:
        """What to reserve. Roles of one pool share its bundles."""
        pools = {
            "none": {"actor": "actor", "ref": "ref", "vllm": "vllm"},
            "actor_ref": {"actor": "train", "ref": "train", "vllm": "vllm"},
            "all": {"actor": "all", "ref": "all", "vllm": "all"},
        }[self.sharing]
        demands = [Demand("actor", pools["actor"], self.policy.ranks)]
        if self.reference is not None:
            demands.append(Demand("ref", pools["ref"], self.reference.ranks))
        tensor_parallel = self.engines.settings.tensor_parallel_size
        return [*demands, Demand("vllm", pools["vllm"], self.engines.count, tensor_parallel)]


@dataclass(frozen=True, slots=True)
class RemoteRoles:
    policy: RemotePolicy
    reference: RemoteReference | None
    generator: RemoteGenerator


def build_roles(spec: RolesSpec) -> RemoteRoles:
    """Start every role and return when all are ready. Call inside a `ray_session`.

    Raises:
        ResourceError: the cluster has less than the roles need, or a process died while loading.
        DataError: a model that cannot be loaded.
    """
    slots = reserve(spec.demands(), gpu=spec.device.count > 0)
    engines, started = _start_engines(spec, slots["vllm"])
    engine_sleeper = _engine_sleeper(engines)
    if spec.sharing == "all" and spec.device.kind != "cpu":
        # An engine measures its GPU when it starts and must be alone on it.
        gather(started, "the engines to load")
        started = []
    takes_turns = spec.sharing == "all" and spec.engines.settings.enable_sleep and spec.device.can("sleep")
    if takes_turns:
        engine_sleeper.sleep()
    roles: dict[Part, TrainedRole] = {"policy": spec.policy}
    if spec.reference is not None:
        roles["reference"] = spec.reference
    groups = {name: _start_group(name, role, slots[SLOTS[name]], spec) for name, role in roles.items()}
    loading = [call for group in groups.values() for call in group.started]
    names = " and ".join(["engines", *groups])
    gather([*started, *loading], f"{names} to load")

    sleepers = {"engines": engine_sleeper} if takes_turns else {}
    if spec.device.can("sleep"):
        sleepers |= {name: _group_sleeper(name, groups[name]) for name, role in roles.items() if role.sleeps}
    phases = Phases(sleepers, asleep=["engines"] if takes_turns else [])
    generator = RemoteGenerator(engines, phases, spec.engines.settings.partial)
    links = EngineLinks(
        engines=engines,
        transport=spec.engines.settings.transport,
        bucket_bytes=spec.engines.bucket_bytes,
        tensor_parallel_size=spec.engines.settings.tensor_parallel_size,
    )
    policy = RemotePolicy(groups["policy"], spec.split, phases, generator, links, spec.content)
    reference = RemoteReference(groups["reference"], spec.split, phases) if "reference" in groups else None
    return RemoteRoles(policy, reference, generator)


def transport_of(device: Device, sharing: Sharing) -> Any:
    """How weights travel to the engines of such a run."""
    return choose_transport(device, colocated=sharing == "all")


def _start_engines(spec: RolesSpec, slots: Sequence[Slot]) -> tuple[list[Any], list[ray.ObjectRef]]:
    environment = worker_environment(spec.device, spec.engines.threads) | engine_environment(
        spec.device, spec.engines.threads
    )
    actor = engine_actor(spec.engines.settings.partial)
    engines: list[Any] = [
        actor.options(**slot.options, runtime_env={"env_vars": environment}).remote(spec.engines.settings, spec.device)
        for slot in slots
    ]
    return engines, [engine.__ray_ready__.remote() for engine in engines]


def _start_group(name: str, role: TrainedRole, slots: Sequence[Slot], spec: RolesSpec) -> WorkerGroup:
    environment = worker_environment(spec.device, role.threads)
    return WorkerGroup(name, slots, spec.device, role.model, role.engine, environment)


def _group_sleeper(part: Part, group: WorkerGroup) -> Sleeper:
    return Sleeper(frozenset({part}), group.sleep, lambda _: group.wake())


def _engine_sleeper(engines: Sequence[Any]) -> Sleeper:
    def sleep() -> None:
        gather([engine.sleep.remote() for engine in engines], "the engines to leave the GPU")

    def wake(parts: frozenset[Part]) -> None:
        gather([engine.wake.remote(sorted(parts)) for engine in engines], "the engines to return to the GPU")

    return Sleeper(frozenset({"weights", "kv_cache"}), sleep, wake)
