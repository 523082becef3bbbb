"""What `judge calibrate` found of a judge, known again before it is trained by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from openrlhf_ext.cli.rl_judge import name_of_weights
from openrlhf_ext.config.judge import JudgeSection
from openrlhf_ext.config.judge_command import JudgeModelFields
from openrlhf_ext.rewards.judge.rubric import Mode, Rubric
from openrlhf_ext.track.progress import console

FILE = "calibration.json"


def folder_of(rubric: str) -> Path:
    """Where the calibrations by a rubric file are kept unless another folder is named."""
    path = Path(rubric).expanduser()
    return path.with_name(f"{path.stem}_calibration")


def name_of(flags: JudgeSection | JudgeModelFields) -> str:
    """What people know the judge by."""
    return flags.model_name_or_path or f"{flags.served_model_name} at {flags.url}"


def fingerprint(flags: JudgeSection | JudgeModelFields, rubric: Rubric, mode: Mode = "pointwise") -> dict[str, str]:
    """Of the weights, or the endpoint's model, of how it is asked, and of what the rubric says."""
    content = hashlib.blake2b(repr(replace(rubric, origin="")).encode(), digest_size=8).hexdigest()
    return {"model": name_of_weights(name_of(flags), "auto"), "mode": mode, "rubric": content}


def say_if_no_better_than_chance(flags: JudgeSection, rubric: Rubric | None) -> None:
    """Before a training by this judge, where it was calibrated by the same rubric file."""
    if rubric is None or flags.prompt is None:
        return
    warning = warning_of(flags, rubric)
    if warning:
        console.print(f"WARNING: {warning}", markup=False, soft_wrap=True)


def warning_of(flags: JudgeSection, rubric: Rubric) -> str | None:
    """A sentence if this judge was calibrated by this rubric and found no better than chance.

    Nothing where it was not calibrated, or another judge was.
    """
    assert flags.prompt is not None, "a judge with a rubric"
    file = folder_of(flags.prompt) / FILE
    if not file.is_file():
        return None
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        if found["fingerprint"] != fingerprint(flags, rubric, flags.mode) or not found["no_better_than_chance"]:
            return None
        kappa = found["agreement"]["kappa"]
        worth = "it never said which of two is better"  # then there is no kappa
        if kappa["value"] is not None:
            worth = f"its kappa was {kappa['value']:.2f} ({kappa['low']:.2f} to {kappa['high']:.2f})"
        return f"the judge is no better than chance: on {found['responses']} labelled responses {worth}, says {file}."
    except (OSError, ValueError, KeyError, TypeError):
        return f"{file} is no result of judge calibrate, so nothing is known of the judge: run judge calibrate again."
