"""quick_start.sh before it has installed anything, in a machine made of stubs: no network, no packages."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ("bash", "basename", "cat", "cut", "dirname", "grep", "id", "rm", "sed", "sha256sum", "touch")

# Answers the script's questions as `$LACKS` says and writes down whatever else it is asked to do.
PYTHON = """#!/bin/bash
case "$2" in
  *version_info*) [ "$LACKS" != python ] ;;
  *libnuma*) [ "$LACKS" != libnuma ] ;;
  *ensurepip*) [ "$LACKS" != venv ] ;;
  *) echo "$@" >> "$CALLS"; exit 1 ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with the common tools and one Python, without apt-get and sudo."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (binaries / tool).symlink_to(found)
    (binaries / "python3").write_text(PYTHON)
    (binaries / "python3").chmod(0o755)
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("quick_start.sh", "setup.py", "requirements"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, clone / name)
    return {"PATH": str(binaries), "CALLS": str(tmp_path / "calls"), "CLONE": str(clone)}


def run(machine: dict[str, str], *flags: str, lacks: str = "") -> subprocess.CompletedProcess[str]:
    script = os.path.join(machine["CLONE"], "quick_start.sh")
    command = [os.path.join(machine["PATH"], "bash"), script, *flags]
    return subprocess.run(
        command, env=machine | {"LACKS": lacks}, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize(("lacks", "named"), [("libnuma", "libnuma1"), ("venv", "python3-venv"), ("python", "PYTHON=")])
def test_what_is_missing_is_one_sentence_before_any_download(machine: dict[str, str], lacks: str, named: str) -> None:
    done = run(machine, "--setup-only", lacks=lacks)
    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not Path(machine["CALLS"]).exists()
    assert not (Path(machine["CLONE"]) / ".venv").exists()


def test_nothing_is_missing_and_the_environment_is_made(machine: dict[str, str]) -> None:
    assert run(machine, "--setup-only").returncode == 1  # the stub makes none
    assert Path(machine["CALLS"]).read_text() == f"-m venv {machine['CLONE']}/.venv\n"


def test_what_is_installed_is_not_installed_again(machine: dict[str, str]) -> None:
    clone = Path(machine["CLONE"])
    content = (clone / "requirements/cpu.lock").read_bytes() + (clone / "setup.py").read_bytes()
    (clone / ".venv").mkdir()
    (clone / f".venv/.installed-cpu-{hashlib.sha256(content).hexdigest()[:16]}").touch()
    done = run(machine, "--setup-only", lacks="python")
    assert done.returncode == 0
    assert "ready" in done.stdout
    (clone / "requirements/cpu.lock").write_bytes(b"another==1\n")
    assert run(machine, "--setup-only", lacks="python").returncode == 2


def test_help_installs_nothing(machine: dict[str, str]) -> None:
    done = run(machine, "--help", lacks="python")
    assert done.returncode == 0
    assert "--setup-only" in done.stdout
