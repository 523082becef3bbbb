"""The flags of `openrlhf-ext plan` itself; all others are those of the command that is planned."""

# ruff: noqa: RUF009 (`flag` and `section` are dataclasses.field with a help text)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openrlhf_ext.config.fields import flag, flags_of, section
from openrlhf_ext.config.layers import scan
from openrlhf_ext.config.load import parse_flags


@dataclass(frozen=True, slots=True)
class PlannedDevice:
    gpu: str | None = flag(None, "the card by its name, such as 'RTX 4090' or 'H100'", common=True)
    memory_gb: float | None = flag(None, "or any card of so many GB (1 GB is 1e9 bytes)", common=True)
    count: int | None = flag(None, "GPUs of each machine (not set: as many as the command asks for)", common=True)
    host_gb: float | None = flag(
        None, "GB of memory of each machine (not set: this machine's, where it is planned for)"
    )


@dataclass(frozen=True, slots=True)
class PlannedData:
    rows: int | None = flag(None, "rows of the data set, instead of naming one", common=True)
    mean_tokens: float | None = flag(None, "tokens of a row on average", common=True)
    eval_rows: int | None = flag(None, "rows of the evaluation set")
    tokenize: bool = flag(False, "count tokens with the tokenizer instead of estimating them from a sample")
    brief: bool = flag(False, "the one screen that a training command prints before it loads anything", common=True)
    sweep: tuple[str, ...] = flag(
        (), "a table over values: FLAG=a,b,c; several of them move together, one value of each a line", common=True
    )


@dataclass(frozen=True, slots=True)
class PlanRequest:
    device: PlannedDevice = section(PlannedDevice, "what it would run on (not set: this machine)")
    plan: PlannedData = section(PlannedData, "what it would be trained on")
    nodes: int | None = flag(None, "machines (not set: as many as the command asks for)", common=True)
    calibrate: str | None = flag(None, "output folder of a finished run, whose times the efficiency is learned from")
    json: bool = flag(False, "print one JSON object", common=True)


def split_request(argv: Sequence[str]) -> tuple[PlanRequest, list[str]]:
    """The plan's own flags, and the command line that is left. Raises ConfigError where one is malformed."""
    own: list[str] = []
    rest: list[str] = []
    for item in scan(argv):
        place = own if item.name in flags_of(PlanRequest) else rest
        place += [f"--{item.name}", *(item.values or ())]
    return parse_flags(PlanRequest, own), rest
