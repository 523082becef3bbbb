"""What is said of a process that died, by what Ray and the kernel say of its death."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError

from openrlhf_ext.cluster import waits
from openrlhf_ext.errors import OutOfMemory, ResourceError
from openrlhf_ext.track.memory import Moment

AT = Moment("policy", "train")
MONITOR = "Memory on the node was 22.9GB, which exceeds the memory usage threshold of 0.95; Ray killed 1 worker"
CRASH = "The actor died unexpectedly. Common causes include: (1) it was killed by the OOM killer due to memory"


@pytest.fixture(autouse=True)
def kills(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many processes the kernel has killed for want of memory: [0] of them before the run."""
    counts = [3]
    monkeypatch.setattr(waits, "_kills_before", 3)
    monkeypatch.setattr(waits, "kernel_kills", lambda: counts[-1])
    return counts


def test_a_death_alone_is_no_lack_of_memory():
    died = waits._died(RayActorError("00", CRASH), "the weights", AT)
    assert type(died) is ResourceError
    assert str(died).startswith("A process died while we waited for the weights (The actor died unexpectedly.")


def test_rays_own_memory_monitor_is_named():
    died = waits._died(OutOfMemoryError(MONITOR), "the weights", AT)
    assert isinstance(died, OutOfMemory) and (died.shortage.role, died.shortage.phase) == AT
    assert died.shortage.reason == "Ray's memory monitor killed a process while we waited for the weights"
    assert type(waits._died(OutOfMemoryError(MONITOR), "the weights", None)) is ResourceError


def test_the_kernel_counts_what_it_killed(kills: list[int]):
    kills.append(4)
    died = waits._died(RayActorError("00", CRASH), "the weights", AT)
    assert isinstance(died, OutOfMemory)
    assert died.shortage.reason == "the kernel killed a process while we waited for the weights"


def test_a_lost_node_is_named(monkeypatch: pytest.MonkeyPatch):
    nodes = [{"NodeID": "ab12", "NodeManagerHostname": "node1"}, {"NodeID": "cd34", "NodeManagerHostname": "node2"}]
    monkeypatch.setattr(waits.ray, "nodes", lambda: nodes)
    lost = "The actor died because its node has died. Node Id: cd34\n\tthe actor's node was terminated unexpectedly"
    died = waits._died(RayActorError("00", lost), "log-probs", AT)
    assert type(died) is ResourceError
    assert str(died) == (
        "node2 was lost while we waited for log-probs: see what became of that node, then continue with "
        "--ckpt.load_enable."
    )


def test_a_node_is_waited_for_of_which_only_an_actor_is_missed_yet(monkeypatch: pytest.MonkeyPatch):
    nodes = [
        {"NodeID": "ab12", "NodeManagerHostname": "node1", "Alive": True},
        {"NodeID": "cd34", "NodeManagerHostname": "node2", "Alive": True},
    ]
    checks = iter(range(100))
    monkeypatch.setattr(waits.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(waits.time, "sleep", lambda _: nodes[1].update(Alive=next(checks) < 3))
    missed = ActorUnavailableError("RPC error: Socket closed", actor_id=bytes(16))
    assert str(waits._died(missed, "log-probs", AT)).startswith("node2 was lost while we waited for log-probs")
    assert next(checks) == 4
    # One of one node, and one whose node stays: a process died.
    nodes[1]["Alive"] = True
    monkeypatch.setattr(waits, "NODE_SECONDS", 0.0)
    for _ in range(2):
        assert str(waits._died(missed, "log-probs", None)).startswith("A process died while we waited for log-probs (")
        nodes.pop()
