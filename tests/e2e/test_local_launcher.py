"""launchers/local.sh: a Ray of the run's own, and one that stays between runs and is ended without touching another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from ray_cluster import ROOT, ray_cluster
from scenario import FLAGS, ONE_EACH, STEPS, Record, output_to

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LAUNCHER = Path(ROOT) / "launchers" / "local.sh"


def test_a_private_ray_and_one_that_stays_is_joined_again_and_ended_alone(workshop: Path) -> None:
    home = workshop / "home of a user"
    home.mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    user = own | {"HOME": str(home), "VENV": sys.prefix, "PYTHONPATH": ROOT}

    def launch(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(LAUNCHER), *words], cwd=workshop, env=user, capture_output=True, text=True, timeout=600,
            check=False,
        )  # fmt: skip

    with ray_cluster(workshop, cpus=1) as others:
        kept = home / ".ray" / "openrlhf_ext"
        alone = launch("rl", *FLAGS, *output_to("alone"))
        assert alone.returncode == 0, alone.stdout + alone.stderr
        assert not kept.exists()
        try:
            processes = []
            for attempt in ("first", "second"):
                done = launch("--keep", "rl", *FLAGS, *ONE_EACH, *output_to(attempt))
                assert done.returncode == 0, done.stdout + done.stderr
                assert Record(workshop / attempt).steps() == list(range(STEPS + 1))
                assert Record(workshop / attempt).repeatable() == Record(workshop / "alone").repeatable()
                processes.append(kept.read_text())
            assert processes[0] == processes[1], "the second run joins what the first has started"
            assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
            session = psutil.Process(int(processes[0].split()[0]))
            started = session.children(recursive=True)
        finally:
            stopped = launch("--stop")
        assert stopped.returncode == 0, stopped.stderr
        _, alive = psutil.wait_procs([session, *started], timeout=30)
        assert not alive and not kept.exists()
        assert ray_answers(others)
    again = launch("--stop")
    assert again.returncode == 2 and "no Ray of --keep is running here" in again.stderr


def ray_answers(address: str) -> bool:
    words = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    return subprocess.run(words, capture_output=True, timeout=120, check=False).returncode == 0
