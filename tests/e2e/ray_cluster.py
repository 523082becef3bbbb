"""A Ray cluster as an administrator starts one, to be joined by its address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import openrlhf_ext

ROOT = str(Path(openrlhf_ext.__file__).resolve().parent.parent)
"""A cluster's nodes have the package: here by the path, elsewhere because it is installed."""


@contextmanager
def ray_cluster(folder: Path, cpus: int) -> Iterator[str]:
    """`ray start --head` on a free port of the loopback address; yields host:port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = f"--head --block --node-ip-address 127.0.0.1 --port {port} --num-cpus {cpus} --include-dashboard false"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    log = folder / "ray_cluster.log"
    with log.open("wb") as output:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *flags.split()],
            env=environment | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": ROOT},
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            if head.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no Ray cluster:\n{log.read_text()}")
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
