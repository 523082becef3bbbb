"""The machine: open files, shared memory, ports."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from openrlhf_ext.cli.checks.finding import Finding, of_error, ok, warning
from openrlhf_ext.cli.checks.subject import Subject
from openrlhf_ext.errors import ResourceError

AREA = "machine"
OPEN_FILES = 4096
"""Ray holds a socket for every process of every role, and vLLM a file for every block of shared memory."""
SHARED_MEMORY = Path("/dev/shm")


def find_limits(subject: Subject) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        yield warning(
            AREA,
            f"a process may open {soft} files here, and a run with several processes may need more",
            f"ulimit -n {OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES * 4, hard)}.",
        )
    else:
        yield ok(AREA, f"a process may open {soft if soft != resource.RLIM_INFINITY else 'any number of'} files")


def find_ray_here(subject: Subject) -> Iterator[Finding]:
    """What a Ray that is started on this machine needs of it."""
    config = subject.config
    with_ray = subject.command == "rl" or config.model.num_nodes * config.model.num_gpus_per_node > 1
    if not with_ray or config.ray.address is not None:
        return
    from openrlhf_ext.cluster.session import check_port_free, object_store_bytes

    ray = subject.config.ray
    if ray.dashboard:
        try:
            check_port_free(ray.bind, ray.dashboard_port)
            yield ok(AREA, f"the dashboard's port {ray.dashboard_port} on {ray.bind} is free")
        except ResourceError as taken:
            yield of_error(AREA, taken)
    if not SHARED_MEMORY.is_dir():
        return
    wanted, free = object_store_bytes(), shutil.disk_usage(SHARED_MEMORY).free
    figures = f"{SHARED_MEMORY} has {free / 1e9:.1f} GB free, and Ray's object store will be {wanted / 1e9:.1f} GB"
    if free < wanted:
        yield warning(
            AREA,
            f"{figures}: rollouts and weights would go through files on disk, slowly",
            "give the container more shared memory (docker run --shm-size), or remount it larger.",
        )
    else:
        yield ok(AREA, figures)
