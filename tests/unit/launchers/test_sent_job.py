"""launchers/ray_job.py beside a dashboard that is not always there; on a real cluster: tests/e2e/test_ray_job.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dashboard import AWAY, FROZEN, Dashboard, details, serving

LAUNCHERS = Path(__file__).resolve().parents[3] / "launchers"
HASTE = "import ray_job; ray_job.ANSWER_S, ray_job.RETRY_S, ray_job.GIVE_UP_S = 0.5, 0.1, 1.0; ray_job.main()"
RL = ["--", "rl", "--actor.model_name_or_path", "m"]


def launch(dashboard: Dashboard, folder: Path, *words: str) -> subprocess.Popen[str]:
    """The launcher, in a hurry, as somebody who has no token."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", HASTE, "--address", dashboard.address, *words],
        env=own | {"PYTHONPATH": str(LAUNCHERS), "HOME": str(folder)}, cwd=folder, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(launcher: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code, and what it said."""
    _, said = launcher.communicate(timeout=60)
    assert "Traceback" not in said, said
    return launcher.returncode, said


def test_a_dashboard_that_is_away_for_a_moment_is_asked_again(tmp_path: Path):
    with serving(Dashboard(["RUNNING", AWAY, 502, AWAY, "SUCCEEDED"])) as dashboard:
        code, said = ended(launch(dashboard, tmp_path, *RL))
    assert code == 0
    assert said.count("does not say how job made is") == 1 and "asking again for 1 s" in said
    assert "job made: SUCCEEDED" in said


def test_a_job_s_exit_code_is_ours_all_the_same(tmp_path: Path):
    with serving(Dashboard([AWAY, "FAILED"], exit_code=75)) as dashboard:
        code, said = ended(launch(dashboard, tmp_path, *RL))
    assert (code, "job made: FAILED" in said) == (75, True)


@pytest.mark.parametrize("answer", [AWAY, FROZEN, 500])
def test_where_it_stays_away_the_job_is_not_said_to_have_failed(answer: int, tmp_path: Path):
    with serving(Dashboard(["RUNNING", answer])) as dashboard:
        code, said = ended(launch(dashboard, tmp_path, *RL))
    assert code == os.EX_UNAVAILABLE
    assert "has not answered for 1 s" in said and "job made may run on" in said
    assert "FAILED" not in said


def test_ctrl_c_stops_a_job_also_where_the_first_word_is_lost(tmp_path: Path):
    with serving(Dashboard(["RUNNING"], to_stop=[AWAY, 200])) as dashboard:
        launcher = launch(dashboard, tmp_path, *RL)
        dashboard.wait_for("status")
        launcher.send_signal(signal.SIGINT)
        code, said = ended(launcher)
    assert (code, dashboard.asked["stop"]) == (130, 2)
    assert "stopping job made" in said


def test_a_second_ctrl_c_does_not_wait_for_the_job(tmp_path: Path):
    with serving(Dashboard(["RUNNING"], to_stop=[FROZEN])) as dashboard:
        launcher = launch(dashboard, tmp_path, *RL)
        for what in ("status", "stop"):
            dashboard.wait_for(what)
            launcher.send_signal(signal.SIGINT)
        code, said = ended(launcher)
    assert code == 130
    assert "not waiting until job made has stopped: ray job status made --address" in said


def test_ctrl_c_while_it_is_sent(tmp_path: Path):
    with serving(Dashboard(to_send=[FROZEN])) as dashboard:
        launcher = launch(dashboard, tmp_path, *RL)
        dashboard.wait_for("send")
        launcher.send_signal(signal.SIGINT)
        code, said = ended(launcher)
    assert code == 130
    assert "interrupted while the job was sent: ray job list" in said


def test_a_name_whose_job_has_ended_is_numbered(tmp_path: Path):
    before = [details("long", "FAILED"), details("long-2", "STOPPED", metadata={"name": "long"}),
              details("long-3", "RUNNING", metadata={"name": "long-3"})]  # fmt: skip
    with serving(Dashboard(jobs=before)) as dashboard:
        code, said = ended(launch(dashboard, tmp_path, "--name", "long", *RL))
    assert code == 0
    assert dashboard.sent[0]["submission_id"] == "long-4", "the third is somebody's whose name it is"
    assert dashboard.sent[0]["metadata"] == {"name": "long"}
    assert "a job long has ended before; this one is long-4." in said


def test_a_name_whose_job_runs_is_refused(tmp_path: Path):
    before = [details("long", "FAILED"), details("long-2", "RUNNING", metadata={"name": "long"})]
    with serving(Dashboard(jobs=before)) as dashboard:
        code, said = ended(launch(dashboard, tmp_path, "--name", "long", *RL))
    assert (code, dashboard.sent) == (2, [])
    assert "--name long: job long-2 has not ended; wait for it, stop it (ray job stop long-2)" in said


def test_without_a_cluster_nothing_is_sent(tmp_path: Path):
    code, said = ended(launch(Dashboard(address="http://127.0.0.1:9"), tmp_path, *RL))
    assert code == 2
    assert "http://127.0.0.1:9 did not take the job: [Errno 111] Connection refused" in said


def test_checkpoints_in_the_copy_of_the_working_directory_are_refused(tmp_path: Path):
    nowhere = Dashboard(address="http://127.0.0.1:9")
    code, said = ended(launch(nowhere, tmp_path, "--working-dir", ".", *RL, "--ckpt.output_dir=/shared/run"))
    assert code == 2
    assert "--ckpt.path ./ckpt/checkpoints_ppo_ray would lie in Ray's copy of --working-dir" in said
    assert "--ckpt.output_dir" not in said


def test_folders_may_be_named_by_a_file_of_the_working_directory(tmp_path: Path):
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "rl.yaml").write_text("ckpt: {output_dir: /shared/run, path: /shared/run/checkpoints}\n")
    nowhere = Dashboard(address="http://127.0.0.1:9")
    code, said = ended(launch(nowhere, tmp_path, "--working-dir", "sent", *RL, "--config", "rl.yaml"))
    assert (code, "did not take the job" in said) == (2, True)
