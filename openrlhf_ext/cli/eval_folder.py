"""The folder of one evaluation: nothing of another model or other settings is ever overwritten.

`evaluation.json` says what is evaluated and how, before the first answer; `answers.parquet` grows while the model
answers; `result.json` is written when all is graded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.evaluation.answers import ANSWERS, RESULT, Answerer, AnswerRow, read_answers, write_answers
from openrlhf_ext.track.files import write_atomically

EVALUATION = "evaluation.json"


@dataclass(frozen=True, slots=True)
class EvaluationFolder:
    """`settings` are all that makes an evaluation another one, by the names that a message may use."""

    path: Path
    answerer: Answerer
    settings: Mapping[str, Any]

    def open(self, *, resume: bool) -> tuple[list[AnswerRow], bool]:
        """The answers that are there already, and whether they are all, and graded.

        Raises DataError for results of another model or of other settings, ConfigError for these very results without
        `resume`, or a folder that cannot be written to.
        """
        there = [name for name in (EVALUATION, ANSWERS, RESULT) if (self.path / name).exists()]
        if not there:
            self._begin()
            return [], False
        found = self._read() if EVALUATION in there else {}
        if found.get("answerer", {}).get("fingerprint") != self.answerer.fingerprint:
            whose = found.get("answerer", {}).get("name", "a model that it does not name")
            raise DataError(
                f"--eval.output {self.path} holds results of {whose}, which is not what "
                f"{self.answerer.name} is now: give another folder."
            )
        before, now = found.get("settings", {}), _plain(self.settings)
        if other := [name for name in now if before.get(name) != now[name]]:
            raise DataError(
                f"--eval.output {self.path} holds results by other settings ({', '.join(other)}): give another folder."
            )
        done = RESULT in there
        if not resume:
            what = "these very results" if done else "a part of this very evaluation"
            remedy = "show them" if done else "go on"
            raise ConfigError(
                f"--eval.output {self.path} holds {what}: give --eval.resume to {remedy}, or another folder."
            )
        rows = read_answers(self.path)[1] if ANSWERS in there else []
        return rows, done

    def keep(self, rows: Sequence[AnswerRow]) -> None:
        write_answers(self.path, self.answerer, rows)

    def finish(self, result: Mapping[str, Any]) -> None:
        write_atomically(self.path / RESULT, json.dumps(result, indent=1, ensure_ascii=False).encode() + b"\n")

    def _begin(self) -> None:
        content = json.dumps({"answerer": asdict(self.answerer), "settings": _plain(self.settings)}, indent=1)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / EVALUATION, content.encode() + b"\n")
        except OSError as error:
            raise ConfigError(
                f"--eval.output {self.path} cannot be written to as a folder ({error.strerror}): choose another."
            ) from None

    def _read(self) -> dict[str, Any]:
        file = self.path / EVALUATION
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            assert isinstance(found["answerer"], dict) and isinstance(found["settings"], dict)
        except (OSError, ValueError, KeyError, TypeError, AssertionError):
            raise DataError(f"{file} was not written by eval: give another --eval.output.") from None
        return found


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON."""
    return json.loads(json.dumps(settings))
