"""The flags of `openrlhf-ext annotate`."""

# ruff: noqa: RUF009 (`flag` and `section` are dataclasses.field with a help text)

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_ext.config.fields import flag, section
from openrlhf_ext.config.judge_command import JudgeModelFields
from openrlhf_ext.config.sections import DeviceSection


@dataclass(frozen=True, slots=True)
class AnnotatedDataSection:
    dataset: str | None = flag(None, "rows: files, folders or hub names; several with commas", common=True)
    split: str = flag("train", "their split")
    shown_keys: tuple[str, ...] = flag((), "columns that the judge reads, such as question answer", common=True)
    max_samples: int = flag(int(1e8), "at most this many rows")


@dataclass(frozen=True, slots=True)
class AnnotateSection:
    taxonomy: str | None = flag(None, "subjects with ids such as 1.4.2: YAML, JSON, CSV or JSONL", common=True)
    output: str | None = flag(None, "JSON Lines file of the rows with their subjects; it is gone on with", common=True)
    column: str = flag("subjects", "column of the ids; _primary, _reason and _repairs are put behind its name")
    batch_size: int = flag(64, "rows that are asked for at a time: a kill loses no more")


@dataclass(frozen=True, slots=True)
class AnnotateConfig:
    """`openrlhf-ext annotate`: the subjects of rows, by the judge."""

    judge: JudgeModelFields = section(JudgeModelFields, "the judge")
    data: AnnotatedDataSection = section(AnnotatedDataSection, "the rows")
    annotate: AnnotateSection = section(AnnotateSection, "the subjects and the file")
    device: DeviceSection = section(DeviceSection, "CPU or GPU")
    json: bool = flag(False, "print one JSON object instead of tables", common=True)
