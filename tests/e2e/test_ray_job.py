"""launchers/ray_job.py on a real cluster of a head and two workers, with token authentication."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ray_cluster import ROOT, job_cluster
from scenario import FLAGS, STEPS, Record, output_to

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LAUNCHER = Path(ROOT) / "launchers" / "ray_job.py"
PLACED = ["--actor.num_gpus_per_node", "1", "--ref.num_gpus_per_node", "1"]


@pytest.fixture(scope="module")
def user(workshop: Path) -> Iterator[dict[str, str]]:
    """The variables of somebody who may use the cluster."""
    with job_cluster(workshop, workers=2, cpus=2) as variables:
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        yield own | variables | {"PYTHONPATH": ROOT}


def command(workshop: Path, *words: str) -> list[str]:
    """The flags of the launcher, and behind `--` a job whose paths are of the workshop."""
    return [sys.executable, str(LAUNCHER), "--working-dir", str(workshop / "sent"), *words]


def absolute(workshop: Path, flags: list[str]) -> list[str]:
    """A job runs in a folder of its own: what is here is named by its path."""
    return [str(workshop / flag) if (workshop / flag).exists() else flag for flag in flags]


@pytest.fixture(scope="module")
def flags(workshop: Path) -> list[str]:
    (workshop / "sent").mkdir()
    return [*absolute(workshop, FLAGS), *PLACED]


def where(workshop: Path, name: str) -> list[str]:
    return [str(workshop / word) if not word.startswith("--") else word for word in output_to(name)]


def test_a_job_runs_to_its_end_and_its_log_is_followed(user: dict[str, str], workshop: Path, flags: list[str]) -> None:
    words = command(workshop, "--", "rl", *flags, *where(workshop, "job"))
    done = subprocess.run(words, env=user, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCEEDED" in done.stderr
    assert f"step {STEPS}/{STEPS}" in done.stdout
    assert Record(workshop / "job").steps() == list(range(STEPS + 1))
    assert nothing_is_left(user)


@pytest.mark.usefixtures("flags")  # it makes the folder that is sent
def test_a_failing_job_s_exit_code_is_ours_and_its_name_may_be_sent_again(user: dict[str, str], workshop: Path) -> None:
    broken = ["rl", "--actor.model_name_or_path", "/nowhere/at/all", *where(workshop, "broken")]
    words = command(workshop, "--name", "broken", "--", *broken)
    for job in ("broken", "broken-2"):
        done = subprocess.run(words, env=user, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 2, done.stdout + done.stderr
        assert f"job {job}: FAILED" in done.stderr
        assert "--data.prompt_dataset" in done.stdout


def test_without_the_token_nothing_is_taken(user: dict[str, str], workshop: Path, tmp_path: Path) -> None:
    stranger = {name: value for name, value in user.items() if not name.startswith("RAY_AUTH")} | {
        "HOME": str(tmp_path)
    }
    words = command(workshop, "--", "rl", *where(workshop, "stranger"))
    done = subprocess.run(words, env=stranger, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "did not take the job" in done.stderr


def test_ctrl_c_stops_the_job_and_the_same_line_goes_on_from_there(
    user: dict[str, str], workshop: Path, flags: list[str]
) -> None:
    words = command(
        workshop, "--name", "named", "--", "rl", *flags, "--ckpt.save_steps", "1", *where(workshop, "stopped")
    )
    with (workshop / "stopped.log").open("wb") as log:
        launcher = subprocess.Popen(words, env=user, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    end = time.monotonic() + 300
    while "job named at" not in (workshop / "stopped.log").read_text():
        assert launcher.poll() is None and time.monotonic() < end, (workshop / "stopped.log").read_text()
        time.sleep(0.1)
    beside = subprocess.run(words, env=user, capture_output=True, text=True, timeout=100, check=False)
    assert beside.returncode == 2
    assert "--name named: job named has not ended" in beside.stderr
    while len(Record(workshop / "stopped").steps()) < 2:
        assert launcher.poll() is None and time.monotonic() < end, (workshop / "stopped.log").read_text()
        time.sleep(0.1)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=120) == 130
    assert "stopping job" in (workshop / "stopped.log").read_text()
    assert nothing_is_left(user)
    assert max(Record(workshop / "stopped").steps()) < STEPS
    again = subprocess.run(words, env=user, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "job named-2: SUCCEEDED" in again.stderr
    assert "step 1/" not in again.stdout, "it goes on, and does not begin anew"
    resumed, whole = Record(workshop / "stopped"), Record(workshop / "job")
    assert resumed.steps() == list(range(STEPS + 1))
    assert [resumed.rollouts(step) for step in range(1, STEPS + 1)] == [
        whole.rollouts(step) for step in range(1, STEPS + 1)
    ]


def nothing_is_left(user: dict[str, str]) -> bool:
    """Whether all processes and placement groups of the job are gone within a minute."""
    for _ in range(120):
        if not roles(user) and not groups(user):
            return True
        time.sleep(0.5)
    raise AssertionError(f"left of the job: {roles(user)} {groups(user)}")


def roles(user: dict[str, str]) -> list[str]:
    """Ray's names of the processes of our roles on this cluster, whose token they have."""
    names = ("ray::TrainWorker", "ray::VllmEngine")
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            name = (process.cmdline() or [""])[0]
            if name.startswith(names) and process.environ().get("RAY_AUTH_TOKEN") == user["RAY_AUTH_TOKEN"]:
                found.append(name)
    return found


def groups(user: dict[str, str]) -> list[str]:
    """Placement groups that hold anything."""
    ask = "import json, os; from ray.util.state import list_placement_groups as groups; " \
          "print(json.dumps([g.state for g in groups(os.environ['RAY_API_SERVER_ADDRESS'])]))"  # fmt: skip
    said = subprocess.run(
        [sys.executable, "-c", ask], env=user, capture_output=True, text=True, timeout=100, check=True
    )
    return [state for state in json.loads(said.stdout.strip().splitlines()[-1]) if state != "REMOVED"]
