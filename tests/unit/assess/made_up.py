"""Answers of two models to made-up prompts, and judgements of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrlhf_ext.assess.assessment import JUDGEMENTS, Assessment, write_assessment
from openrlhf_ext.assess.desk import Desk
from openrlhf_ext.assess.items import Table, make_items
from openrlhf_ext.assess.log import JudgementLog
from openrlhf_ext.assess.verdicts import Choice, Hallucination, Task
from openrlhf_ext.evaluation.answers import Answerer, AnswerRow, Outcome, content_keys

FIRST, SECOND = Answerer("stage-a", "aaaa1111"), Answerer("stage-b", "bbbb2222")
YES, NO = Hallucination(True, "fabricated"), Hallucination(False)


def table(model: Answerer, n: int, *, outcomes: Sequence[Outcome] = (), scores: Sequence[float | None] = ()) -> Table:
    contents = [(f"prompt {i}?", f"reference {i}", f"source {i}") for i in range(n)]
    rows = [
        AnswerRow(
            key=key,
            sample=0,
            source="set",
            prompt=prompt,
            answer=f"{model.name} says {i}",
            outcome=outcomes[i] if outcomes else "ungraded",
            reference=reference,
            context=context,
            score=scores[i] if scores else None,
        )
        for i, (key, (prompt, reference, context)) in enumerate(zip(content_keys(contents), contents))
    ]
    return Table(model, rows)


def assessment(
    tables: Sequence[Table],
    *,
    task: Task = "hallucination",
    raters: Sequence[str] = ("anna", "ben"),
    overlap: int | None = None,
    most: int | None = None,
    seed: int = 1,
) -> Assessment:
    made = make_items(task, tables, most=most, seed=seed)
    models = tuple(each.answerer for each in tables)
    return Assessment(task, models, tuple(raters), overlap, seed, made.items, made.left_out)


class Office:
    """An assessment in a folder, with a desk for each rater."""

    def __init__(self, folder: Path, made: Assessment) -> None:
        write_assessment(folder, made)
        self.folder = folder
        self.assessment = made
        self.log = JudgementLog(folder / JUDGEMENTS, made)
        self.desks = {rater: Desk(made, self.log, rater) for rater in made.raters}

    def key(self, answer: str) -> str:
        """Of the item with this answer."""
        return next(item.key for item in self.assessment.items if answer in [each.text for each in item.answers])

    def judge(self, rater: str, answer: str, said: Hallucination | Choice, **more: Any) -> None:
        self.desks[rater].judge(self.key(answer), said, **more)

    def prefer(self, rater: str, answer: str) -> None:
        """The side with this answer, wherever this rater sees it."""
        desk = self.desks[rater]
        answers = desk.sheet(self.key(answer)).answers
        desk.judge(self.key(answer), Choice("A" if answers[0] == answer else "B"))
