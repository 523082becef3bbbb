"""Every launcher and job script can be read by bash and by shellcheck, and says what it is for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELL = sorted([*ROOT.glob("launchers/*.sh"), *ROOT.glob("slurm/*.sh"), *ROOT.glob("tests/slurm/*.sh")])
PROGRAMS = [path for path in SHELL if os.access(path, os.X_OK) and path.name != "install.sh"]


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_are_some():
    assert len(PROGRAMS) >= 9


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
    assert path.name in done.stdout
    assert "#!" not in done.stdout and "SBATCH" not in done.stdout.replace("SBATCH_", "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["slurm/train_pm_hh_rlhf.sh"], "this is a job script: give it to sbatch"),
        (["slurm/train_ppo_ray.sh"], "names the policy"),
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
