"""From a description of the run to living roles: reserve, start in parallel, meet, hand over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.cluster.generator import RemoteGenerator, engine_actor
from openrlhf_ext.cluster.judge import JudgeEngines, RemoteJudge
from openrlhf_ext.cluster.node_files import check_files
from openrlhf_ext.cluster.phases import Part, Phases, Sleeper
from openrlhf_ext.cluster.placement import Slot, reserve
from openrlhf_ext.cluster.roles import RemoteCritic, RemotePolicy, RemoteReference, RemoteScorer, StoredShares
from openrlhf_ext.cluster.train_worker import SCORERS, EngineLinks
from openrlhf_ext.cluster.waits import gather
from openrlhf_ext.cluster.worker_group import WorkerGroup, worker_environment
from openrlhf_ext.device import Device
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.plan.layout import Demand
from openrlhf_ext.rollout.judge_engine import JudgeEngine
from openrlhf_ext.rollout.vllm_engine import EngineSettings, engine_environment
from openrlhf_ext.track.checkpoints import CheckpointContent
from openrlhf_ext.track.memory import MemoryLog, Moment

Role = Literal["actor", "ref", "critic", "reward", "student", "vllm", "judge"]
"""By the name of its flags."""
ROLES: dict[Part, Role] = {
    "policy": "actor",
    "reference": "ref",
    "critic": "critic",
    "reward": "reward",
    "student": "student",
}


@dataclass(frozen=True, slots=True)
class TrainedRole:
    """A worker group: how many ranks of which model under which engine, with so many threads each.

    `content` is what a checkpoint of it holds, where it is in training.
    """

    ranks: int
    model: ModelSpec
    engine: EngineSpec
    threads: int
    sleeps: bool = False
    content: CheckpointContent = field(default_factory=CheckpointContent)


@dataclass(frozen=True, slots=True)
class EngineRole:
    """The vLLM engines. Bytes of one weight bucket; threads of each engine."""

    count: int
    settings: EngineSettings
    threads: int
    bucket_bytes: int


@dataclass(frozen=True, slots=True)
class JudgeRole:
    """The judge's vLLM engines, and `name`, which tells its weights from others."""

    count: int
    settings: EngineSettings
    threads: int
    name: str


@dataclass(frozen=True, slots=True)
class RolesSpec:
    """All roles of a run. `split` cuts batches for log-probs, values and scores.

    `reference_is_base` says that the policy without its adapters is the reference, which then has no processes.
    Roles of one pool of `pools` share its GPUs; a role that is not in it has GPUs of its own. `overlapping` says
    that generation and scoring run while others train: neither engines nor those who score then ever sleep.
    """

    device: Device
    policy: TrainedRole
    reference: TrainedRole | None
    engines: EngineRole
    split: SplitSettings
    critic: TrainedRole | None = None
    reward: TrainedRole | None = None
    student: TrainedRole | None = None
    judge: JudgeRole | None = None
    reference_is_base: bool = False
    pools: Mapping[Role, str] = field(default_factory=dict)
    overlapping: bool = False

    def __post_init__(self) -> None:
        assert not (self.reference_is_base and self.reference), "one reference at most"
        assert not self.reference_is_base or self.policy.model.lora is not None, "a base is a policy without adapters"

    @property
    def groups(self) -> dict[Part, TrainedRole]:
        """The worker groups by the part of memory that they are."""
        groups: dict[Part, TrainedRole | None] = {
            "policy": self.policy, "reference": self.reference, "critic": self.critic, "reward": self.reward,
            "student": self.student,
        }  # fmt: skip
        return {part: role for part, role in groups.items() if role is not None}

    def pool(self, role: Role) -> str:
        return self.pools.get(role, role)

    @property
    def engines_share(self) -> bool:
        """Whether the engines are on the policy's GPUs."""
        return self.pool("vllm") == self.pool("actor")

    @property
    def judge_shares(self) -> bool:
        """Whether the judge is on the policy's GPUs."""
        return self.judge is not None and self.pool("judge") == self.pool("actor")

    @property
    def judge_sleeps(self) -> bool:
        """Whether it leaves the GPU when it is not asked."""
        assert not (self.overlapping and self.judge_shares), "a judge that scores while others train has its own GPUs"
        return (
            self.judge is not None
            and self.judge_shares
            and self.judge.settings.enable_sleep
            and self.device.can("sleep")
        )

    def demands(self) -> list[Demand]:
        """What to reserve. Roles of one pool share its bundles."""
        demands = [Demand(ROLES[part], self.pool(ROLES[part]), role.ranks) for part, role in self.groups.items()]
        tensor_parallel = self.engines.settings.tensor_parallel_size
        demands.append(Demand("vllm", self.pool("vllm"), self.engines.count, tensor_parallel))
        if self.judge is not None:
            tensor_parallel = self.judge.settings.tensor_parallel_size
            demands.append(Demand("judge", self.pool("judge"), self.judge.count, tensor_parallel))
        return demands

    def files(self) -> dict[Role, list[str]]:
        """What the processes of each role read: folders, files, and names of the hub."""
        files = {ROLES[part]: role.model.files for part, role in self.groups.items()}
        files["vllm"] = [self.engines.settings.model]
        if self.engines.settings.agent is not None:
            files["vllm"].append(self.engines.settings.agent.path)
        return files | ({"judge": [self.judge.settings.model]} if self.judge is not None else {})


@dataclass(frozen=True, slots=True)
class RemoteRoles:
    policy: RemotePolicy
    reference: RemoteReference | None
    generator: RemoteGenerator
    critic: RemoteCritic | None = None
    scorer: RemoteScorer | None = None
    student: RemoteReference | None = None
    judge: RemoteJudge | None = None


def build_roles(spec: RolesSpec, memory: MemoryLog | None = None) -> RemoteRoles:
    """Start every role and return when all are ready. Call inside a `ray_session`. All tell `memory` their peaks.

    Raises:
        ResourceError: the cluster has less than the roles need, or a process died while loading.
        DataError: a model that cannot be loaded, or that a node lacks.
    """
    memory = memory or MemoryLog()
    slots = reserve(spec.demands(), gpu=spec.device.count > 0)
    check_files(spec.files(), slots)
    engines, started = _start_engines(spec, slots["vllm"])
    engine_sleeper = _engine_sleeper(engines)
    # An engine measures its GPU when it starts and must be alone on it.
    alone = spec.device.kind != "cpu"
    if spec.engines_share and alone:
        gather(started, "the engines to load", at=Moment("engines", "load"))
        started = []
    takes_turns = spec.engines_share and spec.engines.settings.enable_sleep and spec.device.can("sleep")
    assert not (takes_turns and spec.overlapping), "engines that generate while others train never sleep"
    if takes_turns:
        engine_sleeper.sleep()
    judges = _start_judge(spec, slots["judge"]) if spec.judge else None
    if judges is not None:
        started += judges.ready()
        if spec.judge_shares and alone:
            gather(judges.ready(), "the judge to load", at=Moment("judge", "load"))
        if spec.judge_sleeps:
            judges.sleep()
    groups = {part: _start_group(part, role, slots[ROLES[part]], spec, memory) for part, role in spec.groups.items()}
    loading = [call for group in groups.values() for call in group.started]
    names = " and ".join(["engines", *["judge"] * (judges is not None), *groups])
    gather([*started, *loading], f"{names} to load", at=Moment("models", "load"))
    for group in groups.values():
        group.loaded()

    sleepers = _sleepers(spec, groups, engine_sleeper if takes_turns else None, judges)
    phases = Phases(sleepers, sleepers.keys() & {"engines", "judge"})
    aside = Phases({}) if spec.overlapping else phases
    served = spec.engines.settings
    generator = RemoteGenerator(engines, aside, served.partial, memory, plays=served.agent is not None)
    transport = spec.engines.settings.transport
    assert transport is not None, "the policy's engines get its weights"
    links = EngineLinks(
        engines=engines,
        transport=transport,
        bucket_bytes=spec.engines.bucket_bytes,
        tensor_parallel_size=spec.engines.settings.tensor_parallel_size,
    )
    shares, scored = StoredShares(spec.split), StoredShares(spec.split)
    return RemoteRoles(
        policy=RemotePolicy(groups["policy"], shares, phases, spec.policy.content, generator, links),
        reference=_reference(spec, groups, shares, phases),
        generator=generator,
        critic=RemoteCritic(groups["critic"], shares, phases, spec.critic.content) if spec.critic else None,
        scorer=RemoteScorer(groups["reward"], scored, aside) if spec.reward else None,
        student=RemoteReference(groups["student"], scored, aside) if spec.student else None,
        judge=RemoteJudge(spec.judge.name, judges, aside, memory) if spec.judge and judges else None,
    )


def _reference(
    spec: RolesSpec, groups: Mapping[Part, WorkerGroup], shares: StoredShares, phases: Phases
) -> RemoteReference | None:
    if spec.reference_is_base:
        return RemoteReference(groups["policy"], shares, phases, adapters=False)
    return RemoteReference(groups["reference"], shares, phases) if spec.reference else None


def _sleepers(
    spec: RolesSpec, groups: Mapping[Part, WorkerGroup], engines: Sleeper | None, judges: JudgeEngines | None
) -> dict[str, Sleeper]:
    sleepers: dict[str, Sleeper] = {} if engines is None else {"engines": engines}
    if judges is not None and spec.judge_sleeps:
        sleepers["judge"] = Sleeper(frozenset({"judge"}), judges.sleep, lambda _: judges.wake())
    if spec.device.can("sleep"):
        for part, role in spec.groups.items():
            if role.sleeps and not (part in SCORERS and spec.overlapping):
                sleepers[part] = _group_sleeper(part, groups[part])
    return sleepers


def _start_engines(spec: RolesSpec, slots: Sequence[Slot]) -> tuple[list[Any], list[ray.ObjectRef]]:
    environment = worker_environment(
        spec.device, spec.engines.threads, alone=not spec.overlapping
    ) | engine_environment(spec.device, spec.engines.threads)
    actor = engine_actor(spec.engines.settings.partial)
    engines: list[Any] = [
        actor.options(**slot.options, runtime_env={"env_vars": environment}).remote(spec.engines.settings, spec.device)
        for slot in slots
    ]
    return engines, [engine.__ray_ready__.remote() for engine in engines]


def _start_judge(spec: RolesSpec, slots: Sequence[Slot]) -> JudgeEngines:
    role = spec.judge
    assert role is not None, "a judge that is asked for"
    environment = worker_environment(spec.device, role.threads, alone=not spec.overlapping) | engine_environment(
        spec.device, role.threads
    )

    def start(place: int) -> Any:
        options = {**slots[place].options, "runtime_env": {"env_vars": environment}}
        return ray.remote(JudgeEngine).options(**options).remote(role.settings, spec.device)

    return JudgeEngines(start, role.count)


def _start_group(
    name: str, role: TrainedRole, slots: Sequence[Slot], spec: RolesSpec, memory: MemoryLog
) -> WorkerGroup:
    environment = worker_environment(spec.device, role.threads, alone=not spec.overlapping)
    return WorkerGroup(name, slots, spec.device, role.model, role.engine, environment, memory)


def _group_sleeper(part: Part, group: WorkerGroup) -> Sleeper:
    return Sleeper(frozenset({part}), group.sleep, lambda _: group.wake())


def _engine_sleeper(engines: Sequence[Any]) -> Sleeper:
    def sleep() -> None:
        gather([engine.sleep.remote() for engine in engines], "the engines to leave the GPU")

    def wake(parts: frozenset[Part]) -> None:
        gather([engine.wake.remote(sorted(parts)) for engine in engines], "the engines to return to the GPU")

    return Sleeper(frozenset({"weights", "kv_cache"}), sleep, wake)
