"""Waiting for remote calls: always with a line that says for what, never past a dead worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from openrlhf_ext.errors import ResourceError, UserError
from openrlhf_ext.track.progress import waiting


def gather(calls: Sequence[ray.ObjectRef], what: str) -> list[Any]:
    """The results of all calls, in order.

    The first failure is raised as soon as it happens, while other calls may still be running (a
    rank that died leaves its peers waiting in a collective).

    Raises:
        UserError: what a worker raised for the user to mend, as it was.
        ResourceError: a worker's process died.
    """
    pending = list(calls)
    with waiting(what):
        while pending:
            done, pending = ray.wait(pending, num_returns=1)
            for call in done:
                try:
                    ray.get(call, timeout=60)
                except RayTaskError as error:
                    raise _raised_by(error) from None
                except RayActorError as error:
                    if error.actor_init_failed:  # Ray keeps what the constructor raised as its error's argument
                        raise _raised_by(error.args[0]) from None
                    raise ResourceError(
                        f"A process died while we waited for {what} ({_in_short(error)}): look at the end of its "
                        "log (often the machine ran out of memory), then continue with --ckpt.load_enable."
                    ) from error
                except GetTimeoutError as error:  # it was reported done: only its transfer is left
                    raise ResourceError(f"The result of {what} did not arrive within a minute.") from error
    return ray.get(list(calls))


def _raised_by(error: RayTaskError) -> Exception:
    """The worker's own exception where it is for the user to mend, else with the worker's traceback."""
    return error.cause if isinstance(error.cause, UserError) else error


def _in_short(error: Exception) -> str:
    """What died, and why: the first and the last line of Ray's account."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ... ".join(dict.fromkeys([lines[0][:200], lines[-1][:200]]))


def tell_progress(done: int, total: int) -> None:
    """How far an engine is; said in its own process, whose output Ray hands on to the user."""
    if done < total:
        print(f"{done} of {total} rollouts", flush=True)
