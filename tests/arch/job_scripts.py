"""Job scripts as Slurm would run them, with programs that only write down how they were called in Slurm's place."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What Slurm tells a job script of two nodes with eight GPUs each.
GRANTED = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_GPUS_ON_NODE": "8",
    "SLURMD_NODENAME": "gpu1", "SLURM_JOB_NAME": "job", "SLURM_CONF": "/dev/null",
    "MODEL": "m", "DATA": "d", "TEST": "t", "REWARD": "r",
}  # fmt: skip


def run(*words: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", "")])
    return subprocess.run(
        words, cwd=cwd, env=own | {"PATH": path} | (env or {}), capture_output=True, text=True, timeout=60, check=False
    )


class StandIns:
    """Programs that write down their words, then do as the body says: Slurm's, and the Python of `venv`."""

    def __init__(self, folder: Path, **bodies: str) -> None:
        self.folder = folder
        self.venv = folder / "venv"
        self._write(self.venv / "bin" / "python", PYTHON)
        for name, body in {"srun": "", "scontrol": "printf '%s\\n' gpu1 gpu2", **bodies}.items():
            self._write(folder / "bin" / name, body)

    def run(self, script: str, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        own = GRANTED | {"PATH": path, "VENV": str(self.venv), "SCRATCH": str(self.folder / "o ut")}
        own |= {"CALLS": str(self.folder / "calls"), **env}
        return run("bash", str(ROOT / "slurm" / script), *flags, cwd=self.folder, env=own)

    def calls(self, name: str) -> list[list[str]]:
        """The words of each call of a program, in their order."""
        written = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [words for program, *words in map(shlex.split, written) if program == name]

    def _write(self, path: Path, body: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        note = f"printf '%s\\n' \"$(printf '%q ' '{path.name}' \"$@\")\" >>\"$CALLS\""  # in one piece
        path.write_text(f"#!/usr/bin/env bash\n{note}\n{body}\n")
        path.chmod(0o755)


PYTHON = """case "$*" in
  *"node.py address"*) echo 10.0.0.1 ;;
  *"node.py port"*) echo 7000 ;;
  *"node.py wait"*) until [ "$(grep -c ^srun "$CALLS")" -ge "${!#}" ]; do sleep 0.05; done ;;
esac"""
