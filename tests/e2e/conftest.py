"""Runs that several tests look at are made once; a folder with a model and data for each test module."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from jobs import job
from scenario import FLAGS, Record, output_to, prepare

sys.path.append(str(Path(__file__).resolve().parents[1] / "contract"))  # its way of spawning ranks serves here too


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A run takes a minute on a busy machine, and it counts for the first test that asks for it."""
    for item in items:
        if item.path.parent == Path(__file__).parent and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("workshop"))


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


@pytest.fixture(scope="session")
def base(workshop: Path) -> BaseRun:
    """The run that the others are compared with: one policy rank, one reference, one engine."""
    record = Record(workshop / "base")
    with job("rl", [*FLAGS, *output_to("base")], workshop) as started:
        started.until(lambda: bool(record.steps()), "first line of metrics")
        processes = [seen for process in started.processes() if (seen := look_at(process))]
        output = started.wait()
    return BaseRun(record, output, processes)


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
