"""What a student's reward was made of, sample by sample: one parquet file for each call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from openrlhf_ext.errors import ConfigError

STEM = "student_"


@dataclass(frozen=True, slots=True)
class StudentRecord:
    """One sample. `parts` are the terms before their weights; the log-probs are those of the tempered distributions.

    `student_tokens` is all that the student read: its tokens from `explanation_start` on, as many as `student_logp`,
    are those of the explanation that the teacher wrote; those from `solution_start` on are the solution.
    """

    prompt_id: str
    sample: int
    version: int  # of the weights that sampled it
    prompt: str
    explanation: str
    student_tokens: list[int]
    explanation_start: int
    solution_start: int
    reward: float
    parts: dict[str, float]
    teacher_logp: list[float]
    student_logp: list[float]
    solution_logp: list[float]


class StudentRecords:
    """Files of a folder, numbered on from those that are there: a run that was resumed goes on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 1 + max((int(path.stem.removeprefix(STEM)) for path in folder.glob(f"{STEM}*.parquet")), default=0)

    def write(self, records: Sequence[StudentRecord]) -> None:
        path = self._folder / f"{STEM}{self._next:06d}.parquet"
        pq.write_table(pa.Table.from_pylist([asdict(record) for record in records]), path)
        self._next += 1


def open_records(folder: Path | None) -> StudentRecords | None:
    """None where there is no folder to write to. Raises ConfigError for one that cannot be made."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--student.debug_dir {folder} cannot be written to as a folder ({error.strerror}): choose another."
        ) from None
    return StudentRecords(folder)
