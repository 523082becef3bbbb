"""The run that others are compared with, and what its processes looked like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
from scenario import Record


@dataclass(frozen=True)
class Process:
    """One process of a run while it trained. `environment` is None where the process has overwritten it."""

    name: str
    environment: dict[str, str] | None
    libraries: frozenset[str]
    listens_on: frozenset[str]


@dataclass(frozen=True)
class BaseRun:
    record: Record
    output: str
    processes: list[Process]


def look_at(process: psutil.Process) -> Process | None:
    try:
        with process.oneshot():
            return Process(
                process.name(),
                process.environ() or None,
                frozenset(Path(part.path).name for part in process.memory_maps()),
                frozenset(
                    connection.laddr.ip
                    for connection in process.net_connections("tcp")
                    if connection.status == psutil.CONN_LISTEN
                ),
            )
    except psutil.NoSuchProcess:
        return None
