"""Every launcher and job script can be read by bash and by shellcheck, and says what it is for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from job_scripts import ROOT, run

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


def test_what_cannot_be_installed_is_said_and_stops_nothing(tmp_path: Path):
    for program, script in {"apt-get": "echo 'E: no route to the archive' >&2; exit 100", "sudo": '"${@:2}"'}.items():
        (tmp_path / program).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / program).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run("bash", str(ROOT / "tests" / "install.sh"), "nowhere-to-be-found:package", env={"PATH": path})
    assert done.returncode == 0
    assert "not installed (apt-get update: E: no route to the archive): package; tests that need" in done.stdout
