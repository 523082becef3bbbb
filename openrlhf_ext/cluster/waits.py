"""Waiting for remote calls: always with a line that says for what, never past a dead worker."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError

from openrlhf_ext.device.host_memory import free_host_bytes, host_bytes, kernel_kills
from openrlhf_ext.errors import OutOfMemory, ResourceError, Shortage, UserError
from openrlhf_ext.track.memory import Moment
from openrlhf_ext.track.progress import waiting

PEERS_SECONDS = 5.0
"""How long an error waits for worse news: the ranks left behind by one that died notice before Ray does."""
NODE_SECONDS = 90.0
"""The same where there are several nodes: Ray takes one for lost after five checks, of 13 s each, without an answer."""
LOOK_SECONDS = 0.5
"""How late a failure may be noticed. A look costs time for every call that is pending: not one for each answer."""
LOST_NODE = re.compile(r"its node has died\. Node Id: (\w+)")

_kills_before = kernel_kills()


def gather(calls: Sequence[ray.ObjectRef], what: str, at: Moment | None = None) -> list[Any]:
    """The results of all calls, in order. `at` says whose memory it is about and when.

    The first failure is raised soon after it happens, while other calls may still be running (a
    rank that died leaves its peers waiting in a collective).

    Raises:
        UserError: what a worker raised for the user to mend, as it was.
        OutOfMemory: a worker's process was killed because there was not enough.
        ResourceError: a worker's process died otherwise.
    """
    pending = list(calls)
    results: dict[ray.ObjectRef, Any] = {}
    with waiting(what):
        while pending:
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=LOOK_SECONDS)
            try:
                results.update(zip(done, ray.get(done, timeout=60), strict=True))  # one by one takes twice as long
            except RayTaskError as error:
                raised = _raised_by(error)
                if not isinstance(raised, UserError) and (death := _death_among([*done, *pending])) is not None:
                    raise _died(death, what, at) from None
                raise raised from None
            except (RayActorError, OutOfMemoryError) as error:
                raise _died(error, what, at) from None
            except GetTimeoutError as error:  # they were reported done: only their transfer is left
                raise ResourceError(f"The results of {what} did not arrive within a minute.") from error
    return [results[call] for call in calls]


@dataclass(frozen=True, slots=True)
class Death:
    """A process that died while it was waited for, did not come to life, or can no longer do what it is for."""

    reason: str


def outcomes(calls: Sequence[ray.ObjectRef], what: str) -> list[Any]:
    """The results of all calls, in order, when all have ended; a Death for each whose process died or raised what is
    not for the user to mend, as an engine does that has lost a process of its own.

    Raises UserError: what a worker raised for the user to mend, as it was.
    """
    with waiting(what):
        ray.wait(list(calls), num_returns=len(calls), fetch_local=False)
    results: list[Any] = []
    for call in calls:
        try:
            results.append(ray.get(call))
        except RayTaskError as error:
            if isinstance(raised := _raised_by(error), UserError):
                raise raised from None
            results.append(Death(_in_short(error)))
        except (RayActorError, OutOfMemoryError) as error:
            results.append(Death(_in_short(error)))
    return results


def _raised_by(error: RayTaskError) -> Exception:
    """The worker's own exception where it is for the user to mend, else with the worker's traceback."""
    cause = error.cause
    while isinstance(cause, RayTaskError):  # it was raised in a process that the worker asked
        cause = cause.cause
    return cause if isinstance(cause, UserError) else error


def _death_among(calls: Sequence[ray.ObjectRef]) -> RayActorError | OutOfMemoryError | None:
    """Whether one of the other processes died, which is why this one failed."""
    pending, until = list(calls), time.monotonic() + (NODE_SECONDS if len(_alive()) > 1 else PEERS_SECONDS)
    while pending and (left := until - time.monotonic()) > 0:
        done, pending = ray.wait(pending, num_returns=1, timeout=left)
        for call in done:
            try:
                ray.get(call, timeout=1)
            except (RayActorError, OutOfMemoryError) as error:
                return error
            except Exception:
                continue  # another rank that was left behind
    return None


def _died(error: RayActorError | OutOfMemoryError, what: str, at: Moment | None) -> Exception:
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return _raised_by(error.args[0])  # Ray keeps what the constructor raised as its error's argument
    if (lost := _lost_node(error)) is not None:
        return ResourceError(
            f"{lost} was lost while we waited for {what}: see what became of that node, then continue with "
            "--ckpt.load_enable."
        )
    by_ray, kills = "memory usage threshold" in str(error), kernel_kills() - _kills_before
    if at is not None and (by_ray or kills > 0):
        killer = "Ray's memory monitor" if by_ray else "the kernel"
        reason = f"{killer} killed a process while we waited for {what}"
        return OutOfMemory(Shortage(at.role, at.phase, reason, None, free_host_bytes(), host_bytes()))
    return ResourceError(
        f"A process died while we waited for {what} ({_in_short(error)}): look at the end of its "
        "log (often the machine ran out of memory), then continue with --ckpt.load_enable."
    )


def _lost_node(error: Exception) -> str | None:
    """The name of the node that died with the actor. An actor is unavailable before Ray knows why: we wait for that."""
    if (lost := LOST_NODE.search(str(error))) is not None:
        return {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}.get(lost[1], lost[1])
    if not isinstance(error, ActorUnavailableError):
        return None
    there, until = _alive(), time.monotonic() + NODE_SECONDS
    while len(there) > 1 and time.monotonic() < until:
        alive = _alive()
        for node, name in there.items():
            if node not in alive:
                return name
        time.sleep(0.5)
    return None


def _alive() -> dict[str, str]:
    """The names of the nodes of the cluster by their ids."""
    return {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}


def _in_short(error: Exception) -> str:
    """What died, and why: the first and the last line of Ray's account."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ... ".join(dict.fromkeys([lines[0][:200], lines[-1][:200]]))
