"""The commands a user types, each in a session of its own, so that nothing of it is left behind."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import openrlhf_ext
from openrlhf_ext.device.rendezvous import free_port

MODULES = {
    "rl": "openrlhf_ext.cli.train_ppo_ray",
    "sft": "openrlhf_ext.cli.train_sft",
    "rm": "openrlhf_ext.cli.train_rm",
    "dpo": "openrlhf_ext.cli.train_dpo",
    "serve-rm": "openrlhf_ext.cli.serve_rm",
}
MARK = "OPENRLHF_EXT_TEST_JOB"
LONGEST = 600.0
"""Seconds that a run may take: ten times what it takes on a quiet machine."""
GONE_WITHIN = 30.0
"""Seconds after the end of the driver until no process of the run is left."""


class Job:
    """`python -m MODULE flags` in `folder`, started, by torchrun where there are several ranks. Paths in the flags are
    relative to `folder`."""

    def __init__(self, command: str, flags: Sequence[str], folder: Path, ranks: int = 1) -> None:
        self._mark = secrets.token_hex(8)
        self._log = folder / f"output-{self._mark}.log"
        root = str(Path(openrlhf_ext.__file__).resolve().parent.parent)
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = os.pathsep.join(filter(None, [root, own.get("PYTHONPATH")]))
        self.started = time.monotonic()
        with self._log.open("wb") as log:
            self.driver = psutil.Popen(
                [sys.executable, *_torchrun(ranks), "-m", MODULES[command], *flags],
                cwd=folder,
                env=own | {MARK: self._mark, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def processes(self) -> list[psutil.Process]:
        """All that the command started and that still runs, the command itself included.

        Ray's processes stay in the driver's session; a reward file has one of its own, and is known by the mark.
        """
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return os.getsid(process.pid) == self.driver.pid or process.environ().get(MARK) == self._mark
        except (psutil.Error, OSError):
            return False

    def until(self, condition: Callable[[], bool], what: str, seconds: float = LONGEST) -> None:
        """Wait for the condition; the job's output is shown if it ends or hangs before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.driver.poll() is not None:
                pytest.fail(f"the command ended with {self.driver.returncode} before {what}:\n{self.output}")
            if time.monotonic() > deadline:
                pytest.fail(f"no {what} within {seconds:g} s:\n{self.output}")
            time.sleep(0.02)

    def wait(self, exit_code: int = 0, seconds: float = LONGEST) -> str:
        """Wait for the end; returns the output. Fails on another exit code, and if a process stays behind."""
        try:
            code = self.driver.wait(seconds)
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            pytest.fail(f"the command did not end within {seconds:g} s:\n{self.output}")
        self.seconds_taken = self.seconds
        if code != exit_code:
            pytest.fail(f"exit code {code}, not {exit_code}:\n{self.output}")
        self.until_gone()
        return self.output

    def kill_driver(self) -> None:
        """What the kernel does when memory runs out: the driver alone, and no word to anybody."""
        self.driver.send_signal(signal.SIGKILL)
        self.driver.wait(30)

    def until_gone(self, seconds: float = GONE_WITHIN) -> float:
        """Wait until no process is left, without helping; returns how long that took."""
        start = time.monotonic()
        while left := self.processes():
            if time.monotonic() - start > seconds:
                names = ", ".join(f"{process.pid} {process.name()}" for process in left)
                pytest.fail(f"after {seconds:g} s there are still {names}:\n{self.output}")
            time.sleep(0.1)
        return time.monotonic() - start

    def clean_up(self) -> None:
        for process in self.processes():
            process.kill()
        self.driver.wait(30)


def _torchrun(ranks: int) -> list[str]:
    if ranks == 1:
        return []
    port = free_port("127.0.0.1")
    return ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(port)]


@contextmanager
def job(command: str, flags: Sequence[str], folder: Path, ranks: int = 1) -> Iterator[Job]:
    """A job that is ended, with all that it started, when the block ends."""
    started = Job(command, flags, folder, ranks)
    try:
        yield started
    finally:
        started.clean_up()


def run(command: str, flags: Sequence[str], folder: Path, *, exit_code: int = 0, ranks: int = 1) -> str:
    """Run to the end and return the output."""
    with job(command, flags, folder, ranks) as started:
        return started.wait(exit_code)
