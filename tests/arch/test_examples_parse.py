"""Every shipped YAML file and shell script names flags that exist and a combination that is allowed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from openrlhf_ext.cli.main import COMMANDS as ENTRIES
from openrlhf_ext.config import COMMANDS, flags_of, parse

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "examples").rglob("*"))
YAMLS = [path for path in FILES if path.suffix in (".yaml", ".yml")]
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]

# What a YAML file may leave to the command line.
REQUIRED = {
    "rl": {"actor.model_name_or_path": "m", "data.prompt_dataset": "d", "reward.remote_url": "r.py"},
    "sft": {"model.model_name_or_path": "m", "data.dataset": "d"},
}

# Stands where a script expects Python or the console script, and writes down how it was called.
RECORDER = """#!/bin/bash
call=$(mktemp "$CALLS/XXXXXX")
printf '%s\\0' "${0##*/}" "$@" > "$call"
"""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_are_examples():
    assert YAMLS or SCRIPTS


def flat(node: dict, prefix: str = "") -> set[str]:
    return set().union(
        *(
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
            for key, value in node.items()
        )
    )


@pytest.mark.parametrize("path", YAMLS, ids=name)
def test_a_yaml_file_parses(path: Path):
    given = flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    command = max(COMMANDS, key=lambda item: len(given & flags_of(COMMANDS[item]).keys()))
    missing = {key: value for key, value in REQUIRED[command].items() if key not in given}
    parse(command, ["--config", str(path), *(token for key, value in missing.items() for token in (f"--{key}", value))])


def calls_of(script: Path, folder: Path) -> list[list[str]]:
    """The calls of Python and the console script that this script makes; none of them runs."""
    binaries, records = folder / "bin", folder / "calls"
    binaries.mkdir()
    records.mkdir()
    for program in ("openrlhf-ext", "python", "python3", "uv"):
        (binaries / program).write_text(RECORDER)
        (binaries / program).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": str(binaries / "python"),
        "CALLS": str(records),
    }
    done = subprocess.run(
        ["bash", str(script)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return [path.read_bytes().decode().split("\0")[:-1] for path in records.iterdir()]


def job_of(call: list[str]) -> tuple[str, list[str]] | None:
    """The command of a call and its flags: `openrlhf-ext rl ...` or `python -m openrlhf_ext.cli.train_sft ...`."""
    modules = {module: command for command, (module, _) in ENTRIES.items()}
    if call[0] == "openrlhf-ext":
        return call[1], call[2:]
    if "-m" in call:
        place = call.index("-m") + 1
        if call[place] == "openrlhf_ext.cli.main":
            return call[place + 1], call[place + 2 :]
        if call[place] in modules:
            return modules[call[place]], call[place + 1 :]
    return None


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_a_script_parses(path: Path, tmp_path: Path):
    jobs = [job for job in map(job_of, calls_of(path, tmp_path)) if job is not None]
    assert any(command in COMMANDS for command, _ in jobs), "the script runs no job"
    for command, argv in jobs:
        if command in COMMANDS:
            parse(command, argv)


def test_a_wrong_script_is_seen(tmp_path: Path):
    script = tmp_path / "x.sh"
    script.write_text('python -m openrlhf_ext.cli.train_sft \\\n  --train.bach_size "${N:-3}" "$@"\n')
    assert [job_of(call) for call in calls_of(script, tmp_path)] == [("sft", ["--train.bach_size", "3"])]
