"""The flags of `openrlhf-ext assess serve`, `assess report` and `assess export`."""

# ruff: noqa: RUF009 (`flag` and `section` are dataclasses.field with a help text)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openrlhf_ext.config.fields import flag, section


@dataclass(frozen=True, slots=True)
class AssessSection:
    """What is fixed when the folder is made. Later runs need the folder only; what they name again must agree."""

    folder: str | None = flag(None, "folder of the assessment: made at the first time, gone on with later", common=True)
    task: Literal["hallucination", "preference"] = flag(
        "hallucination", "each answer by itself, or which of two models' answers is better", common=True
    )
    answers: tuple[str, ...] = flag((), "one or two folders that `eval` wrote: the answers of a model", common=True)
    raters: tuple[str, ...] = flag(("rater",), "names of those who judge", common=True)
    overlap: int | None = flag(
        None, "items that all raters see, the others being split between them (not set: all see all)", common=True
    )
    items: int | None = flag(None, "at most this many items, drawn at random (not set: all)", common=True)
    seed: int = flag(42, "of what is drawn, of the order and of the sides")
    rater: str | None = flag(None, "who judges in the terminal (--tui)", common=True)


@dataclass(frozen=True, slots=True)
class AssessedDataSection:
    """Answers from any data set, in place of folders that `eval` wrote."""

    dataset: str | None = flag(None, "rows with answers: files, folders or hub names; several with commas", common=True)
    split: str = flag("train", "their split")
    prompt_key: str = flag("prompt", "column of the prompt")
    answer_key: str = flag("answer", "column of the answer")
    other_answer_key: str | None = flag(None, "column of a second model's answer to the same prompt")
    context_key: str | None = flag(None, "column of the source that an answer is held against (a text or several)")
    reference_key: str | None = flag(None, "column of the reference answer")
    verdict_key: str | None = flag(
        None, "column of a judge's verdict on the answer: 1, true, yes, right or correct, or their opposites"
    )
    model: str | None = flag(None, "name of the model that answered (not set: the data set and the column)")
    other_model: str | None = flag(None, "name of the second")


@dataclass(frozen=True, slots=True)
class AssessConfig:
    """`openrlhf-ext assess serve`: people judge on a page, or in this terminal."""

    assess: AssessSection = section(AssessSection, "what is judged, and by whom")
    data: AssessedDataSection = section(AssessedDataSection, "answers that are not from eval")
    tui: bool = flag(False, "judge in this terminal instead of on a page", common=True)
    host: str = flag("127.0.0.1", "address to listen on (loopback: this machine only; 0.0.0.0: whoever reaches it)")
    port: int = flag(8600, "port to listen on (0: any free one)", common=True)


@dataclass(frozen=True, slots=True)
class AssessedSection:
    folder: str | None = flag(None, "folder of the assessment", common=True)


@dataclass(frozen=True, slots=True)
class AssessReportSection:
    at_most: float = flag(0.15, "the share of hallucinated answers that is to be shown or refuted", common=True)
    resamples: int = flag(2000, "draws of the bootstrap")
    seed: int = flag(42, "of the draws")


@dataclass(frozen=True, slots=True)
class AssessReportConfig:
    """`openrlhf-ext assess report`: what was judged, and how far raters and judge agree."""

    assess: AssessedSection = section(AssessedSection, "the assessment")
    report: AssessReportSection = section(AssessReportSection, "what is told")
    json: bool = flag(False, "print one JSON object instead of tables", common=True)


@dataclass(frozen=True, slots=True)
class AssessExportSection:
    judgements: str | None = flag(None, "JSONL file for every judgement that holds", common=True)
    preferences: str | None = flag(
        None, "JSONL file of prompt, chosen, rejected, as `dpo` and `rm` read it", common=True
    )
    with_references: bool = flag(
        False, "of an answer that is hallucinated: its reference is chosen over it", common=True
    )
    overwrite: bool = flag(False, "files that are there already are replaced")


@dataclass(frozen=True, slots=True)
class AssessExportConfig:
    """`openrlhf-ext assess export`: judgements as files."""

    assess: AssessedSection = section(AssessedSection, "the assessment")
    export: AssessExportSection = section(AssessExportSection, "what is written")
