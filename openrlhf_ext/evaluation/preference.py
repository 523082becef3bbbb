"""Which of two models' answers a judge prefers: pairs by content, each asked in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from scipy.stats import binomtest

from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.agreement import as_json
from openrlhf_ext.evaluation.answers import AnswerRow
from openrlhf_ext.evaluation.asked import AskedRow
from openrlhf_ext.evaluation.figures import rate
from openrlhf_ext.rewards.judge.asking import NoVerdict
from openrlhf_ext.rewards.judge.judge import Judge
from openrlhf_ext.rewards.judge.prompt import Case

Preference = Literal["won", "lost", "tie"]
POINTS = {"won": 1.0, "tie": 0.5, "lost": 0.0}
NOTE = "against"


@dataclass(frozen=True, slots=True)
class Pairing:
    """Places of ours that have a partner, and the partner's answers; how many of either side have none."""

    places: list[int]
    others: list[AnswerRow]
    ours_alone: int
    theirs_alone: int


def paired(ours: Sequence[AnswerRow], theirs: Sequence[AnswerRow]) -> Pairing:
    """By key and sample. Raises DataError where no answer has a partner."""
    partners = {row.pair: row for row in theirs if row.finish != "abort"}
    places = [place for place, row in enumerate(ours) if row.pair in partners and row.finish != "abort"]
    if not places:
        raise DataError(
            "no answer has a partner in the results of --eval.against: they are of other rows, or of other columns for "
            "prompt, label and context."
        )
    return Pairing(
        places, [partners[ours[place].pair] for place in places], len(ours) - len(places), len(theirs) - len(places)
    )


def prefer(
    judge: Judge, asked: Sequence[AskedRow], ours: Sequence[AnswerRow], theirs: Sequence[AnswerRow]
) -> list[Preference | None]:
    """Whether ours is better; equal texts tie without a question, and None is no verdict. What the two orders do not
    agree on is a tie. All sequences have one length.
    """
    different = [i for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)) if mine.answer != other.answer]
    pairs = [(_case(asked[i], ours[i]), _case(asked[i], theirs[i])) for i in different]
    found: list[Preference | None] = ["tie"] * len(ours)
    for place, verdict in zip(different, judge.compare_pairs(pairs), strict=True):
        assert judge.rubric is not None
        won = None if isinstance(verdict, NoVerdict) else judge.rubric.winner(verdict.winners)
        found[place] = None if isinstance(verdict, NoVerdict) else _PREFERENCES[won]
    return found


_PREFERENCES: dict[bool | None, Preference] = {True: "won", False: "lost", None: "tie"}


def with_preferences(rows: Sequence[AnswerRow], places: Sequence[int], said: Sequence[str | None]) -> list[AnswerRow]:
    noted = list(rows)
    for place, preference in zip(places, said, strict=True):
        if preference is not None:
            noted[place] = replace(noted[place], notes={**noted[place].notes, NOTE: preference})
    return noted


def preference_figures(rows: Sequence[AnswerRow]) -> dict[str, Any] | None:
    """As JSON values, from the rows' notes; None where no pair was judged.

    `win_rate` counts a tie as half; `won`, `tie` and `lost` are rates of all pairs, with intervals over questions as
    the figures'. `p_value` is the exact two-sided sign test of won against lost (ties left out), of one answer to
    each question; null where there are several, which are no independent pairs.
    """
    questions: dict[str, list[str]] = {}
    for row in rows:
        if NOTE in row.notes:
            questions.setdefault(row.key, []).append(row.notes[NOTE])
    pairs = sum(map(len, questions.values()))
    if not pairs:
        return None
    counts = {name: sum(said.count(name) for said in questions.values()) for name in POINTS}
    rates = {
        name: as_json(rate([said.count(name) / len(said) for said in questions.values()], pairs)) for name in POINTS
    }
    points = [fmean(POINTS[each] for each in said) for said in questions.values()]
    decided = counts["won"] + counts["lost"]
    single = pairs == len(questions) and decided
    return {
        "pairs": pairs,
        "questions": len(questions),
        "counts": counts,
        "win_rate": as_json(rate(points, pairs)),
        **rates,
        "p_value": float(binomtest(counts["won"], decided).pvalue) if single else None,
    }


def _case(asked: AskedRow, row: AnswerRow) -> Case:
    return Case(row.prompt, row.answer, asked.prompt.label, asked.prompt.meta, asked.where)
