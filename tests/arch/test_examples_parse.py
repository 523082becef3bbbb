"""Every shipped YAML file and shell script names flags that exist and a combination that is allowed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from openrlhf_ext.cli.main import COMMANDS as ENTRIES
from openrlhf_ext.config import COMMANDS, flags_of, parse
from openrlhf_ext.rewards.judge.rubric_file import load_rubric

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "examples").rglob("*"))
RUBRICS = [path for path in FILES if path.match("*rubric*.yaml")]
YAMLS = [path for path in FILES if path.suffix in (".yaml", ".yml") and path not in RUBRICS]
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]

# What a YAML file may leave to the command line.
REQUIRED = {
    "rl": {"actor.model_name_or_path": "m", "data.prompt_dataset": "d", "reward.remote_url": "r.py"},
    **{command: {"model.model_name_or_path": "m", "data.dataset": "d"} for command in ("sft", "rm", "dpo")},
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


def layers(path: Path) -> list[Path]:
    """A file that says "On top of NAME" is read after that one of its folder."""
    under = re.match(r"# On top of (\S+\.yaml)", path.read_text(encoding="utf-8"))
    return [path.with_name(under[1]), path] if under else [path]


@pytest.mark.parametrize("path", YAMLS, ids=name)
def test_a_yaml_file_parses(path: Path):
    files = layers(path)
    given = set().union(*(flat(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files))
    nearest = max(COMMANDS, key=lambda item: len(given & flags_of(COMMANDS[item]).keys()))
    command = path.stem if path.stem in COMMANDS else nearest
    missing = {key: value for key, value in REQUIRED[command].items() if key not in given}
    config = ["--config", *map(str, files)]
    parse(command, [*config, *(token for key, value in missing.items() for token in (f"--{key}", value))])


@pytest.mark.parametrize("path", RUBRICS, ids=name)
def test_a_rubric_parses(path: Path):
    assert load_rubric(path).criteria


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


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_a_script_can_be_started(path: Path):
    assert os.access(path, os.X_OK), "it is not executable"
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_dpo_goes_on_from_the_adapters_that_sft_leaves(tmp_path: Path):
    jobs = dict(filter(None, map(job_of, calls_of(ROOT / "examples/dpo_hallucination/train.sh", tmp_path))))
    sft, dpo = (parse(command, jobs[command]).config for command in ("sft", "dpo"))
    assert dpo.model.model_name_or_path == f"{sft.ckpt.output_dir}/adapters"
    assert sft.ds.lora.rank > 0
    assert (dpo.ds.lora, dpo.ds.load_in_4bit) == (sft.ds.lora, sft.ds.load_in_4bit)
    assert sft.ckpt.path != dpo.ckpt.path and sft.ckpt.output_dir != dpo.ckpt.output_dir


def test_rows_of_ones_own_take_the_place_of_the_hub_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = ROOT / "examples/pm_hh_rlhf/train.sh"
    (tmp_path / "hub").mkdir()
    (tmp_path / "own").mkdir()
    ((_, hub),) = map(job_of, calls_of(script, tmp_path / "hub"))
    monkeypatch.setenv("TRAIN", "a.jsonl")
    monkeypatch.setenv("TEST", "b.jsonl")
    ((_, own),) = map(job_of, calls_of(script, tmp_path / "own"))
    hub, own = parse("rm", hub).config, parse("rm", own).config
    assert (hub.data.dataset, hub.eval.split) == ("Anthropic/hh-rlhf", "test")
    assert (own.data.dataset, own.eval.dataset, own.eval.split) == ("a.jsonl", "b.jsonl", "train")


def test_sft_asks_in_the_words_of_the_rl_that_follows():
    read = {
        name: yaml.safe_load((ROOT / f"examples/{name}.yaml").read_text()) for name in ("gsm8k/rl", "sft_gsm8k/sft")
    }
    assert len({config["data"]["input_template"] for config in read.values()}) == 1


def test_a_wrong_script_is_seen(tmp_path: Path):
    script = tmp_path / "x.sh"
    script.write_text('python -m openrlhf_ext.cli.train_sft \\\n  --train.bach_size "${N:-3}" "$@"\n')
    assert [job_of(call) for call in calls_of(script, tmp_path)] == [("sft", ["--train.bach_size", "3"])]
