"""Threads are counted from the cores that this process may use, which are not always all of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable

import pytest

from openrlhf_ext.cores import threads_for, threads_of_rank, usable_cores


@pytest.fixture
def four_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, {0, 1, 8, 9})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)


def allow(monkeypatch: pytest.MonkeyPatch, cores: Iterable[int]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))


def test_of_a_process_that_was_given_one_core():
    first = min(os.sched_getaffinity(0))
    ask = f"import os; os.sched_setaffinity(0, [{first}]); from openrlhf_ext.cores import *; print(usable_cores())"
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout == "1\n"


@pytest.mark.usefixtures("four_of_many")
@pytest.mark.parametrize(("processes", "threads"), [(0, 4), (1, 4), (2, 2), (3, 1), (8, 1)])
def test_processes_share_the_cores_that_are_allowed(processes: int, threads: int):
    assert usable_cores() == 4
    assert threads_for(processes) == threads


@pytest.mark.usefixtures("four_of_many")
def test_ranks_share_the_cores_of_a_job(monkeypatch: pytest.MonkeyPatch):
    assert threads_of_rank(2) == 2
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert (threads_of_rank(2), threads_of_rank(8)) == (2, 1)


@pytest.mark.usefixtures("four_of_many")
def test_a_rank_that_srun_bound_to_cores_of_its_own_does_not_share_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "32")
    assert threads_of_rank(8) == 4
    allow(monkeypatch, {5})
    assert threads_of_rank(8) == 1
