"""Starting a Ray of our own, or joining one by its address.

A Ray that we start is private: every port binds to the loopback address and every call carries a
token that lives as long as the run. What stays when the run ends are its logs.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from openrlhf_ext.cluster.environment import is_loopback
from openrlhf_ext.cluster.wire import tensors_travel_as_arrays
from openrlhf_ext.device.host_memory import keep_freed_memory
from openrlhf_ext.errors import ResourceError
from openrlhf_ext.track.progress import waiting

NEW_VALUES = 20_000
"""After so many the driver looks for cycles among them; Python would after 700, some hundred times a step."""


@dataclass(frozen=True, slots=True)
class RaySettings:
    """`address` None starts Ray here; "auto" or host:port joins. `cpus` and `gpus` are what a
    Ray started here declares; its logical CPUs may exceed the cores, since roles take turns.
    """

    address: str | None = None
    bind: str = "127.0.0.1"
    dashboard: bool = False
    dashboard_port: int = 8265
    cpus: int = 1
    gpus: int = 0


@contextmanager
def ray_session(settings: RaySettings) -> Iterator[Path]:
    """Connect to Ray for the time of the block; `prepare_environment` comes before Ray is imported.

    Yields the folder of the processes' logs (on the head node, where the cluster has several).

    Raises:
        ResourceError: the address does not answer, or the dashboard's port is taken.
    """
    if settings.address is None and settings.dashboard:
        check_port_free(settings.bind, settings.dashboard_port)
    if settings.address is not None and settings.address != "auto":
        _check_answers(settings.address)  # Ray itself would try for ten minutes
    try:
        with waiting("Ray" if settings.address is None else f"the Ray cluster at {settings.address}"):
            if settings.address is None:
                context = ray.init(
                    address="local",
                    num_cpus=settings.cpus,
                    num_gpus=settings.gpus,
                    include_dashboard=settings.dashboard,
                    dashboard_host=settings.bind,
                    dashboard_port=settings.dashboard_port,
                    _node_ip_address=None if is_loopback(settings.bind) else settings.bind,
                    object_store_memory=object_store_bytes(),
                    configure_logging=False,
                )
            else:
                context = ray.init(address=settings.address, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "could not be started here" if settings.address is None else f"at {settings.address} does not answer"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(
            f"Ray {where} ({reason}): check --ray.address, or leave it out to start a private Ray on this machine."
        ) from error
    signal.signal(signal.SIGTERM, _end_in_order)  # Ray's own handler aborts the process with a dump of addresses
    tensors_travel_as_arrays()
    spare_the_driver()
    try:
        yield Path(context.address_info["session_dir"]) / "logs"  # type: ignore[attr-defined]  # not a client's context
    finally:
        ray.shutdown()


def spare_the_driver() -> None:
    """A driver copies tensors and hardly computes: threads that wait awake for the next copy cost more than they save,
    and most of a copy's cost are the page faults of its new memory. The thousands of values of a step have no cycles:
    to look for some among them and all that is loaded takes longer than to make them.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_VALUES, *gc.get_threshold()[1:])


def _end_in_order(*_: object) -> None:
    """What `kill` and a scheduler ask for: leave every block that is open, then the exit code of a shell."""
    print("Terminated.", file=sys.stderr)
    sys.exit(128 + signal.SIGTERM)


def check_port_free(host: str, port: int) -> None:
    """Raises ResourceError if something listens on that port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(
                f"--ray.dashboard_port {port} on {host} is in use ({error.strerror}): choose a free port."
            ) from error


def _check_answers(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ResourceError(f'--ray.address {address} is no address: give host:port, or "auto" for the cluster here.')
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ResourceError(
            f"No Ray cluster answers at --ray.address {address} ({error}): start one with `ray start --head`, "
            "or leave the flag out to start a private Ray on this machine."
        ) from error


def object_store_bytes() -> int:
    """A tenth of the memory, at most 8 GiB: rollouts and one weight bucket are small beside the models."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(max(memory // 10, 256 << 20), 8 << 30))
