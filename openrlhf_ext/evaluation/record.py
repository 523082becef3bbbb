"""What an evaluation within a training run leaves: its answers on disk, and its figures as metrics."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from openrlhf_ext.evaluation.answers import RESULT, Answerer, AnswerRow, write_answers
from openrlhf_ext.evaluation.asked import AskedRow, Said, answered
from openrlhf_ext.evaluation.figures import summarise
from openrlhf_ext.evaluation.generation import SampledAnswer, passes
from openrlhf_ext.evaluation.grading import by_score
from openrlhf_ext.evaluation.subjects import Taxonomy
from openrlhf_ext.track.files import write_atomically

SOURCE = "source"


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """The evaluations of one run, each as `openrlhf-ext eval` leaves one, in `folder`/step-N: a table of answers, and
    their figures. `run` is what people call it, and `fingerprint` changes with all that its weights depend on, the step
    apart. `rule` says what graded the answers, `settings` how they were sampled. `k` are those of pass@k.

    Without `folder` (a rank that does not lead) nothing is written.
    """

    folder: Path | None
    run: str
    fingerprint: str
    rule: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    k: tuple[int, ...] = (1,)
    groups: tuple[str, ...] = ()
    subject_column: str | None = None
    taxonomy: Taxonomy | None = None

    def keep(self, step: int, rows: Sequence[AnswerRow]) -> dict[str, float]:
        """Write the answers after this step; returns their figures by the names of `metrics_of`."""
        figures = self._figures(rows)
        if self.folder is not None:
            digest = hashlib.blake2b(f"{self.fingerprint} {step}".encode(), digest_size=16).hexdigest()
            answerer, folder = Answerer(f"{self.run} step {step}", digest), self.folder / f"step-{step:08d}"
            write_answers(folder, answerer, rows)
            result = {
                "answerer": asdict(answerer),
                "rule": self.rule,
                "rate": {"name": "accuracy", "outcome": "right", "better": "high"},
                "settings": dict(self.settings),
                "figures": figures,
            }
            write_atomically(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False).encode() + b"\n")
        return metrics_of(figures)

    def check(self, rows: Sequence[AnswerRow]) -> None:
        """Raises DataError where these rows, answered or not, have not the columns of groups and subjects."""
        self._figures(rows)

    def _figures(self, rows: Sequence[AnswerRow]) -> dict[str, Any]:
        groups = dict.fromkeys((SOURCE, *self.groups))
        return summarise(
            rows, k=self.k, groups=tuple(groups), subject_column=self.subject_column, taxonomy=self.taxonomy
        )


def rows_of(asked: Sequence[AskedRow], answers: Iterable[SampledAnswer]) -> list[AnswerRow]:
    """Answers that rewards graded, as rows; in a game each has the column `role`."""
    rows = []
    for each in answers:
        rollout = each.rollout
        said = Said(rollout.text, rollout.response_length, rollout.finish_reason)
        row = answered(asked[each.place].blank, rollout.sample, said)
        if rollout.role:
            row = replace(row, columns={**row.columns, "role": rollout.role})
        rows.append(row if row.outcome == "failed" else by_score(row, each.score, passes))
    return rows


def metrics_of(figures: Mapping[str, Any]) -> dict[str, float]:
    """Figures of `summarise`, grouped by source too, as numbers: `eval/SOURCE/accuracy`, pass@k, unanswered, truncated,
    score, questions and failed for each source and, where there are several, for `all`; `eval/COLUMN/VALUE/accuracy`
    and questions for each group, `eval/COLUMN/ID/...` for each subject. What cannot be told is NaN.
    """
    metrics: dict[str, float] = {}
    sources = figures["groups"][SOURCE]
    for source, own in sources.items():
        metrics |= {f"eval/{source}/{name}": value for name, value in _whole(own)}
    if len(sources) > 1:
        metrics |= {f"eval/all/{name}": value for name, value in _whole(figures["all"])}
    for column, values in figures["groups"].items():
        if column != SOURCE:
            for value, own in values.items():
                metrics |= {f"eval/{column}/{value}/{name}": number for name, number in _part(own)}
    if subjects := figures["subjects"]:
        for node in subjects["nodes"]:
            metrics |= {f"eval/{subjects['column']}/{node['id']}/{name}": number for name, number in _part(node)}
        metrics[f"eval/{subjects['column']}/unknown"] = float(sum(subjects["unknown"].values()))
    return metrics


def _whole(own: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield from _part(own)
    for k, found in own["pass_at"].items():
        yield f"pass@{k}", _number(found["value"])
    for outcome in ("unanswered", "truncated"):
        yield outcome, _number(own["rates"][outcome]["value"])
    yield "score", _number(own["score"]["value"])
    yield "failed", float(own["outcomes"]["failed"])


def _part(own: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield "accuracy", _number(own["accuracy"]["value"])
    yield "questions", float(own["questions"])


def _number(value: float | None) -> float:
    return math.nan if value is None else value
