"""Runs that several tests look at are made once; a folder with a model and data for each test module."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from base_run import BaseRun, look_at
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


@pytest.fixture(scope="session")
def base(workshop: Path) -> BaseRun:
    """The run that the others are compared with: one policy rank, one reference, one engine."""
    record = Record(workshop / "base")
    with job("rl", [*FLAGS, *output_to("base")], workshop) as started:
        started.until(lambda: bool(record.steps()), "first line of metrics")
        processes = [seen for process in started.processes() if (seen := look_at(process))]
        output = started.wait()
    return BaseRun(record, output, processes)
