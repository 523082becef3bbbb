"""What a finished run says of the roofline: the share of it that each part of a step has reached."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_ext.config import COMMANDS, Parsed, parse
from openrlhf_ext.config.layers import read_yaml
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.arithmetic import rows_per_step, sequences_per_row
from openrlhf_ext.plan.setup import setup_of
from openrlhf_ext.plan.speed import roofline
from openrlhf_ext.plan.trial import Command
from openrlhf_ext.plan.types import DataSize, Hardware, Setup

Line = Mapping[str, Any]
PLAN_FILE = "plan.json"
"""What a run was planned to need, in its output folder (`describe.as_json`)."""


def efficiency_of_run(folder: Path, hardware: Hardware) -> dict[str, float]:
    """Roofline over measured seconds by part, from the config.yaml and metrics.jsonl of a run on this hardware.

    The first step is left out where there are others: it compiles, reads and allocates. A share above 1 says that the
    run was faster than the plan's assumptions (answers at their limit, a core's figures). Raises ConfigError for a
    folder without such files or without a whole step or of other hardware, DataError where the run's model cannot be
    found.
    """
    _check_hardware(folder, hardware)
    command, parsed = _config_of(folder)
    lines = _steps_of(folder, parsed.config.logger.metrics_file)
    setup = setup_of(
        command, parsed.config, parsed.explicit, hardware, DataSize(None, None, parsed.config.data.max_len)
    )
    setup = setup_of(command, parsed.config, parsed.explicit, hardware, _size(setup, lines))
    ideal, shares = roofline(setup), {}
    steps = sum(covered for covered, _ in lines)
    for part, least in ideal.items():
        spent = [line[f"seconds/{part}"] for _, line in lines if line.get(f"seconds/{part}")]
        times = len(spent) if part == "save" else steps
        if spent and least:
            shares[part] = least * times / sum(spent)
    if not shares:
        raise ConfigError(
            f"--calibrate {folder}: its metrics hold no seconds of any part of a step; give a finished run."
        )
    return shares


def _check_hardware(folder: Path, hardware: Hardware) -> None:
    """A share of one card's best says nothing of another's. A run without a plan has to be believed."""
    path = folder / PLAN_FILE
    if not path.is_file():
        return
    try:
        ran_on = json.loads(path.read_text(encoding="utf-8"))["gpu"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ConfigError(f"--calibrate {folder}: its {PLAN_FILE} is no plan; give a finished run.") from None
    planned_for = hardware.card.name if hardware.card is not None else None
    if ran_on != planned_for:
        raise ConfigError(
            f"--calibrate {folder}: that run was on {ran_on or 'a CPU'} and this plan is for {planned_for or 'a CPU'}: "
            "give a run on the same hardware, or leave it out."
        )


def _config_of(folder: Path) -> tuple[Command, Parsed]:
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"--calibrate {folder}: there is no config.yaml in it; give a run's --ckpt.output_dir.")
    names = {item.name for item in read_yaml(path)}
    owns: dict[Command, str] = {"rl": "actor.model_name_or_path", "dpo": "model.beta", "rm": "model.loss_type"}
    command: Command = next((command for command, flag in owns.items() if flag in names), "sft")
    assert command in COMMANDS, "a command has a config"
    return command, parse(command, ["--config", str(path)], planning=True)


def _steps_of(folder: Path, elsewhere: str | None) -> list[tuple[int, Line]]:
    """How many steps each line of metrics covers, and the line; without the first where others follow."""
    path = Path(elsewhere) if elsewhere else folder / "metrics.jsonl"
    if not path.is_file():
        raise ConfigError(f"--calibrate {folder}: there is no metrics.jsonl in it; give a run's --ckpt.output_dir.")
    found: list[tuple[int, Line]] = []
    before = 0
    for line in _objects(path.read_text(encoding="utf-8").splitlines()):
        step = line.get("step", 0)
        if step > before and line.get("seconds/update"):
            found.append((step - before, line))
        before = step
    if not found:
        raise ConfigError(f"--calibrate {folder}: its metrics.jsonl has no step with an update; give a finished run.")
    return found[1:] or found


def _objects(lines: Iterable[str]) -> Iterable[Line]:
    """The lines that are whole: a run that was killed may have torn the last one."""
    for text in lines:
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            yield value


def _size(setup: Setup, lines: Sequence[tuple[int, Line]]) -> DataSize:
    """The lengths that the run really met: tokens of its sequences, and in RL those of its answers."""
    sequences = sum(covered for covered, _ in lines) * rows_per_step(setup) * sequences_per_row(setup)
    rows = sum(line.get("train/examples", 0) for _, line in lines)
    if rows:
        sequences = int(rows) * sequences_per_row(setup)
    longest = int(setup.config.data.max_len)
    mean = _tokens(lines, "update") / sequences
    answer = _tokens(lines, "generate") / sequences
    prompt = max(mean - answer, 1.0) if answer else None
    return DataSize(None, min(mean, longest) or None, longest, prompt, how="counted")


def _tokens(lines: Sequence[tuple[int, Line]], part: str) -> float:
    rate = f"tokens_per_second/{part}"
    return sum(line[rate] * line[f"seconds/{part}"] for _, line in lines if line.get(rate))
