"""A Ray cluster as an administrator starts one, to be joined by its address."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import openrlhf_ext

ROOT = str(Path(openrlhf_ext.__file__).resolve().parent.parent)
"""A cluster's nodes have the package: here by the path, elsewhere because it is installed."""


@contextmanager
def ray_cluster(folder: Path, cpus: int) -> Iterator[str]:
    """`ray start --head` on a free port of the loopback address; yields host:port."""
    port = free_port()
    with node(folder / "ray_cluster.log", ["--head", "--port", str(port), "--include-dashboard", "false"], cpus, {}):
        yield f"127.0.0.1:{port}"


@contextmanager
def job_cluster(folder: Path, workers: int, cpus: int) -> Iterator[dict[str, str]]:
    """A head and workers, all with token authentication, that take jobs; yields the variables of their users.

    A job's driver is sent to the cluster that was started last in Ray's folder, so this one has a folder of its own.
    """
    port, dashboard, token = free_port(), free_port(), secrets.token_hex(32)
    security = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    head = ["--head", "--port", str(port), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
    with ExitStack() as nodes:
        own = nodes.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp"))  # a socket's name is short
        head += ["--temp-dir", own]
        nodes.enter_context(node(folder / "head.log", head, cpus, security))
        for number in range(workers):
            log = folder / f"worker_{number}.log"
            nodes.enter_context(node(log, ["--address", f"127.0.0.1:{port}"], cpus, security))
        yield security | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}


@contextmanager
def node(log: Path, flags: list[str], cpus: int, security: Mapping[str, str]) -> Iterator[None]:
    """`ray start`. Several nodes share this machine, so none has a port of Ray's own choice that is always the same."""
    own = [f"--{name}={free_port()}" for name in ("dashboard-agent-listen-port", "runtime-env-agent-port")]
    if "--head" in flags:
        own.append(f"--ray-client-server-port={free_port()}")
    words = ["start", *flags, "--block", "--node-ip-address", "127.0.0.1", "--num-cpus", str(cpus), *own]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            env=environment | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": ROOT} | security,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            if started.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no Ray node:\n{log.read_text()}")
            time.sleep(0.2)
        yield
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
