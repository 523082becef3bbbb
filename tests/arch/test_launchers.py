"""Every launcher and job script can be read by bash and by shellcheck, and says what it is for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCED = {"launchers/common.sh", "slurm/cluster.sh", "slurm/job.sh"}
SILENT = {"tests/install.sh", ".ci/run", "requirements/compile.sh"}
"""Programs of the developers, without a word to say for themselves."""
SHELL = sorted(
    path
    for pattern in (
        "*.sh",
        "launchers/*.sh",
        "slurm/*.sh",
        "examples/*/*.sh",
        "tests/*.sh",
        "tests/*/*.sh",
        "requirements/*.sh",
        ".ci/*",
    )
    for path in ROOT.glob(pattern)
)
PROGRAMS = [path for path in SHELL if path.relative_to(ROOT).as_posix() not in SOURCED | SILENT]


def run(*words: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", "")])
    return subprocess.run(
        words, cwd=cwd, env=own | {"PATH": path} | (env or {}), capture_output=True, text=True, timeout=60, check=False
    )


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_are_some():
    assert len(PROGRAMS) >= 20
    assert {name(path) for path in SHELL} >= SOURCED | SILENT
    assert all(os.access(path, os.X_OK) for path in PROGRAMS)


@pytest.mark.parametrize("path", SHELL, ids=name)
def test_bash_reads_it(path: Path):
    assert run("bash", "-n", str(path)).returncode == 0


@pytest.mark.parametrize("path", SHELL, ids=name)
def test_shellcheck_finds_nothing(path: Path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = run("shellcheck", "-x", "-P", str(ROOT), str(path))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", PROGRAMS, ids=name)
def test_it_prints_its_usage_from_anywhere(path: Path, tmp_path: Path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "the repository").symlink_to(ROOT)
    done = run("bash", str(folder / "the repository" / name(path)), "-h", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert path.name in done.stdout or "usage: openrlhf-ext" in done.stdout  # the command's own, where -h goes on to it
    assert "#!" not in done.stdout and "SBATCH" not in done.stdout.replace("SBATCH_", "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["slurm/train_pm_hh_rlhf.sh"], "this is a job script: give it to sbatch"),
        (["slurm/train_ppo_ray.sh"], "names the policy"),
        (["slurm/train_sft.sh"], "names the model"),
        (["slurm/rank.sh"], "name a command"),
        (["slurm/submit.sh"], "name a job script"),
        (["slurm/submit.sh", "slurm/nowhere.sh"], "slurm/nowhere.sh does not exist"),
        (["launchers/local.sh"], "name a command"),
        (["launchers/launch_training.sh", "fit"], "fit is no training command"),
        (["launchers/launch_mono.sh", "nowhere.yaml"], "nowhere.yaml does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_answered_at_once(words: list[str], sentence: str):
    done = run("bash", *words)
    assert done.returncode != 0
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("launcher", "word"),
    [("launch_training.sh", "rl"), ("launch_mono.sh", "c.yaml"), ("launch_spread.sh", "c.yaml"), ("local.sh", "rl")],
)
def test_a_signal_to_the_launcher_reaches_the_command(launcher: str, word: str, tmp_path: Path):
    python, began = tmp_path / "an installation" / "bin" / "python", tmp_path / "began"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/bash\n"
        'case " $* " in *" check "*) exit 0 ;; esac\n'
        "trap 'exit 75' USR1\n"
        f"touch '{began}'\n"
        "for _ in {1..400}; do sleep 0.05; done\n"
    )
    python.chmod(0o755)
    (tmp_path / "c.yaml").touch()
    words = ["bash", str(ROOT / "launchers" / launcher), word]
    with subprocess.Popen(words, cwd=tmp_path, env=os.environ | {"VENV": str(python.parents[1])}) as started:
        try:
            while not began.exists():
                assert started.poll() is None
                time.sleep(0.01)
            started.send_signal(signal.SIGUSR1)
            assert started.wait(timeout=20) == 75
        finally:
            started.kill()


# What Slurm tells a job script of two nodes with eight GPUs each. Nothing of Slurm is asked.
GRANTED = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_GPUS_ON_NODE": "8",
    "SLURM_JOB_NAME": "job", "SLURM_CONF": "/dev/null", "MODEL": "m", "DATA": "d", "TEST": "t", "REWARD": "r",
}  # fmt: skip
BATCHES = {
    "train_pm_hh_rlhf.sh": "2 x 4 x 16 = 128",
    "train_pm_hh_rlhf_bs256.sh": "2 x 8 x 16 = 256",
    "train_sft.sh": "2 x 4 x 16 = 128",
    "train_dpo.sh": "2 x 2 x 16 = 64",
}


@pytest.mark.parametrize("script", [*BATCHES, "train_ppo_ray.sh"])
def test_gpus_given_are_held_against_those_asked_for_in_seconds(script: str, tmp_path: Path):
    start = time.monotonic()
    fewer = run("bash", str(ROOT / "slurm" / script), cwd=tmp_path, env=GRANTED | {"GPUS_PER_NODE": "4"})
    assert fewer.returncode == 2
    assert "job: GPUS_PER_NODE is 4 and Slurm gave 8 on each node: ask for as many" in fewer.stderr
    none = run("bash", str(ROOT / "slurm" / script), cwd=tmp_path, env=GRANTED | {"SLURM_GPUS_ON_NODE": "0"})
    assert none.returncode == 2
    assert "Slurm gave no GPU: ask for some" in none.stderr
    assert time.monotonic() - start < 5
    assert not list(tmp_path.iterdir()), "and nothing was begun"


@pytest.mark.parametrize("script", BATCHES)
def test_the_effective_batch_is_computed_or_refused_in_seconds(script: str, tmp_path: Path):
    path = str(ROOT / "slurm" / script)
    nowhere = GRANTED | {"VENV": str(tmp_path / "nowhere")}
    done = run("bash", path, cwd=tmp_path, env=nowhere)
    assert f"job: effective batch {BATCHES[script]}\n" in done.stdout
    assert done.returncode == 2 and "holds no bin/python" in done.stderr
    uneven = run("bash", path, cwd=tmp_path, env=nowhere | {"BATCH": "100"})
    assert uneven.returncode == 2
    assert "an effective batch of 100 is no multiple of 2 x 16 ranks = 32" in uneven.stderr
    twice = run("bash", path, cwd=tmp_path, env=nowhere | {"ACCUMULATION": "3"})
    assert twice.returncode == 2
    assert "MICRO 2 x ACCUMULATION 3 x 16 ranks is 96, and BATCH asks for" in twice.stderr


def test_the_first_rank_s_exit_code_is_kept_and_one_that_comes_back_did_not_fail(tmp_path: Path):
    """As srun has them: it kills the others where one ends badly."""
    rank, ended = str(ROOT / "slurm" / "rank.sh"), tmp_path / "an end"
    assert run("bash", rank, "true", env={"ENDED": str(ended)}).returncode == 0
    assert not ended.exists()
    assert run("bash", rank, "bash", "-c", "exit 3", env={"ENDED": str(ended)}).returncode == 3
    assert run("bash", rank, "bash", "-c", "exit 75", env={"ENDED": str(ended)}).returncode == 0
    assert ended.read_text() == "3\n"
    ended.unlink()
    assert run("bash", rank, "bash", "-c", "exit 75", env={"ENDED": str(ended)}).returncode == 0
    assert ended.read_text() == "75\n"


def test_a_rank_that_is_told_before_it_listens_hears_it_all_the_same(tmp_path: Path):
    listener = tmp_path / "listens late.py"
    listener.write_text(
        "import os, signal, sys, time\n"
        "open(sys.argv[1], 'w').close()\n"
        "time.sleep(1)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: os._exit(75))\n"
        "time.sleep(30)\n"
    )
    began, ended = tmp_path / "began", tmp_path / "ended"
    words = ["bash", str(ROOT / "slurm" / "rank.sh"), sys.executable, str(listener), str(began)]
    with subprocess.Popen(words, env=os.environ | {"ENDED": str(ended)}) as rank:
        while not began.exists():
            time.sleep(0.01)
        time.sleep(0.2)  # the trap is set right behind the start
        rank.send_signal(signal.SIGUSR1)
        assert rank.wait(timeout=20) == 0
    assert ended.read_text() == "75\n"


def test_what_cannot_be_installed_is_said_and_stops_nothing(tmp_path: Path):
    for program, script in {"apt-get": "echo 'E: no route to the archive' >&2; exit 100", "sudo": '"${@:2}"'}.items():
        (tmp_path / program).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / program).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run("bash", str(ROOT / "tests" / "install.sh"), "nowhere-to-be-found:package", env={"PATH": path})
    assert done.returncode == 0
    assert "not installed (apt-get update: E: no route to the archive): package; tests that need" in done.stdout
