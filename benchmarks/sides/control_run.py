"""The two halves of `control_plane.py`: a Ray of many nodes with echo workers on it, and runs of the real driver."""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.cluster_utils import Cluster

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.cluster.generator import RemoteGenerator
from openrlhf_ext.cluster.phases import Phases
from openrlhf_ext.cluster.recorder import RemoteRecorder
from openrlhf_ext.cluster.roles import RemotePolicy, RemoteReference, StoredShares
from openrlhf_ext.cluster.session import spare_the_driver
from openrlhf_ext.cluster.wire import tensors_travel_as_arrays
from openrlhf_ext.cluster.worker_group import WorkerGroup
from openrlhf_ext.data.source import PromptSource
from openrlhf_ext.ops.advantage import AdvantageSettings
from openrlhf_ext.rewards.builtin import LengthSource
from openrlhf_ext.rewards.sources import RewardSettings
from openrlhf_ext.rewards.weighted import WeightedReward
from openrlhf_ext.track.checkpoints import CheckpointContent
from openrlhf_ext.track.memory import MemoryLog
from openrlhf_ext.track.phases import PhaseClock
from openrlhf_ext.trainers.journal import Cadence, Journal
from openrlhf_ext.trainers.objectives import PolicyObjective
from openrlhf_ext.trainers.rl import train_rl
from openrlhf_ext.trainers.settings import RLRoles, RLSettings
from openrlhf_ext.types import Prompt, Sampling
from sides.echo import EchoEngine, EchoRank

PROMPT_TOKENS = 64
MIB = 1 << 20
SHARED = "/dev/shm"
STORE_BYTES = 6 << 30
"""Of the driver's node; the other nodes share as much."""


class EchoGroup(WorkerGroup):
    """The ranks of one role; several share a process where there are fewer processes than ranks."""

    def __init__(self, name: str, processes: Sequence[Any], nodes: Sequence[str]) -> None:
        self.name = name
        self._memory = MemoryLog()
        self.nodes = tuple(nodes)
        self.workers = [processes[rank * len(processes) // len(nodes)] for rank in range(len(nodes))]


class EchoCluster:
    """A Ray of its own: a head for the driver, and raylets that hold the declared nodes with their workers."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self._chosen = chosen
        self._ranks = chosen.nodes * chosen.ranks_per_node
        per_raylet = chosen.nodes // chosen.raylets
        assert per_raylet * chosen.raylets == chosen.nodes, "every raylet holds as many nodes"
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False},
        )
        for raylet in range(chosen.raylets):
            nodes = range(raylet * per_raylet, (raylet + 1) * per_raylet)
            resources = {f"node-{node}": 1000.0 for node in nodes}
            self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES // chosen.raylets, resources=resources)
        ray.init(address=self._cluster.address, configure_logging=False, log_to_driver=False)
        tensors_travel_as_arrays()
        spare_the_driver()

        def on_node(actor: Any, node: int) -> Any:
            return ray.remote(actor).options(num_cpus=0, resources={f"node-{node}": 1.0}).remote()

        self.processes = [on_node(EchoRank, at * chosen.nodes // chosen.processes) for at in range(chosen.processes)]
        self.engines = [on_node(EchoEngine, node) for node in range(chosen.nodes)]
        ray.get([each.heavy.remote() for each in (*self.processes, *self.engines)])

    def __enter__(self) -> EchoCluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        ray.shutdown()
        self._cluster.shutdown()

    @property
    def facts(self) -> dict[str, Any]:
        chosen = self._chosen
        return {
            "declared_nodes": chosen.nodes, "raylets": chosen.raylets + 1, "engines": len(self.engines),
            "ranks_of_each_role": self._ranks, "processes_of_ranks": len(self.processes),
            "ranks_of_a_process": 2 * self._ranks / len(self.processes),
        }  # fmt: skip

    def described(self, seconds: float) -> str:
        facts = self.facts
        return (
            f"{facts['declared_nodes']} declared nodes on {facts['raylets'] - 1} raylets and the driver's own; "
            f"{self._ranks} ranks each of policy and reference in {facts['processes_of_ranks']} processes "
            f"({facts['ranks_of_a_process']:g} ranks a process, asked one by one); {facts['engines']} engines, a "
            f"process each; ready in {seconds:.0f} s"
        )

    def heavy(self) -> list[str]:
        """Whatever a worker imported that it should not have."""
        found = ray.get([each.heavy.remote() for each in (*self.processes, *self.engines)])
        return sorted({name for names in found for name in names})

    def roles(self, split: SplitSettings, reward: WeightedReward) -> RLRoles:
        phases = Phases({})
        generator = RemoteGenerator(self.engines, phases)
        nodes = [f"node-{rank // self._chosen.ranks_per_node}" for rank in range(self._ranks)]
        groups = {name: EchoGroup(name, self.processes, nodes) for name in ("policy", "reference")}
        links: Any = self.engines  # without the transport of weights, which needs torch
        shares = StoredShares(split)
        policy = RemotePolicy(groups["policy"], shares, phases, CheckpointContent(), generator, links)
        return RLRoles(generator, reward, policy, RemoteReference(groups["reference"], shares, phases))


class StepCosts:
    """A `Tracker`: the driver's processor time between one step's end and the next, and the peaks of memory."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.values: list[Mapping[str, float]] = []
        self._cpu, self._wall = time.process_time(), time.monotonic()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        cpu, wall = time.process_time(), time.monotonic()
        self.cpu.append(cpu - self._cpu)
        self.wall.append(wall - self._wall)
        self.values.append(values)
        self._cpu, self._wall = cpu, wall

    def close(self) -> None:
        """Nothing is open."""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """As the line that the user watches."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)


class MostStored:
    """The most that shared memory, where Ray's object stores are, grew by; looked at once a second."""

    def __init__(self) -> None:
        self.mib = 0.0
        self._before = shutil.disk_usage(SHARED).used
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MostStored:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(1.0):
            self.mib = max(self.mib, (shutil.disk_usage(SHARED).used - self._before) / MIB)


def measure(cluster: EchoCluster, chosen: argparse.Namespace, tokens: int, steps: int) -> dict[str, Any]:
    """The real driver for one step that is not counted and `steps` that are."""
    rollouts = chosen.prompts * chosen.samples
    settings = RLSettings(
        seed=1,
        pad_id=0,
        sampling=Sampling(n=chosen.samples, max_new_tokens=tokens),
        split=SplitSettings(rows=chosen.micro_rows),
        batch_size=rollouts // chosen.optimizer_steps,
        objective=PolicyObjective(kl_coef=1e-3),
        advantage=AdvantageSettings(estimator="group_norm"),
    )
    prompts = [
        Prompt(f"p{index}", tuple(range(3, 3 + PROMPT_TOKENS)), f"Question {index}: ".ljust(256, "?"), label=str(index))
        for index in range(chosen.prompts)
    ]
    costs = StepCosts()
    journal = Journal(Cadence(), tracker=costs, line=costs, store=None)
    journal.clock = PhaseClock(time.process_time)
    reward = WeightedReward([LengthSource("length", 1, tokens // 2)], RewardSettings(), None)
    source = PromptSource(prompts, batch_size=chosen.prompts, episodes=1 + steps)
    with tempfile.TemporaryDirectory() as folder, MostStored() as stored:
        roles = cluster.roles(settings.split, reward)
        with RemoteRecorder(Path(folder)) as recorder:
            train_rl(settings, source, roles, journal, recorder=recorder)
    for values in costs.values:
        assert values["policy/actions"] == rollouts * tokens, "every action reached a rank, once"
    counted = slice(1, None)
    names = [name for name in costs.values[-1] if name.startswith("seconds/") and name != "seconds/step"]
    phases = {
        name.removeprefix("seconds/"): statistics.median(values[name] for values in costs.values[counted])
        for name in names
    }
    cpu = statistics.median(costs.cpu[counted])
    return {
        "answer_tokens": tokens, "rollouts": rollouts, "tokens_per_step": rollouts * (tokens + PROMPT_TOKENS),
        "steps": steps, "cpu": cpu, "each_cpu": costs.cpu[counted], "first_cpu": costs.cpu[0],
        "wall": statistics.median(costs.wall[counted]), "phases": phases | {"rest": cpu - sum(phases.values())},
        "driver_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "store_peak_mib": stored.mib,
    }  # fmt: skip
