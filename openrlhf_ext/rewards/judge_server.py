"""What a judge behind HTTP is asked and answers, in the form of `server`.

A request has "query" (prompts with their responses), "prompts", and where the rubric shows them "labels" and further
columns; what follows the prompt in a query is the response. The answer has "rewards", "scores" (the same), "extra_logs"
(the criteria as numbers, and `cut`) and "notes" (the verdicts as JSON).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf_ext.errors import UserError
from openrlhf_ext.rewards.judge.asking import NoVerdict
from openrlhf_ext.rewards.judge.judge import Judge, Verdict
from openrlhf_ext.rewards.judge.prompt import Case, write_prompt
from openrlhf_ext.rewards.judge.rubric import Rubric
from openrlhf_ext.rewards.server import Form, Refused, object_of, response_of, texts_of

OF_THE_TEXT = {"parse", "refused", "too_long"}
"""Why there is no verdict where another try would find none either."""
SHAPE = 'send {"query": ["prompt and response", ...], "prompts": ["prompt", ...], "labels": [...]}'


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on a case, and the tokens that the judge read and wrote for it, as its share of its round."""

    verdict: Verdict | NoVerdict
    tokens: int


def judge_cases(judge: Judge, totals: Counter[str]) -> Callable[[Sequence[Case]], list[Judged]]:
    """What the line calls with the cases of a round; what the judge counted is added to the totals."""

    def score(cases: Sequence[Case]) -> list[Judged]:
        verdicts = judge.judge(cases)
        report = judge.take_report()
        for name, metric in report.items():
            totals[name.removeprefix("judge/")] += metric.total  # type: ignore[assignment]  # it adds floats as well
        tokens = sum(report[name].total for name in ("judge/prompt_tokens", "judge/answer_tokens") if name in report)
        return [Judged(verdict, round(tokens / len(cases))) for verdict in verdicts]

    return score


def judge_form(rubric: Rubric) -> Form:
    """The form of a pointwise judge by this rubric."""
    return Form(lambda body: cases_of(body, rubric), lambda judged: answer(judged, rubric))


def cases_of(body: bytes, rubric: Rubric) -> list[Case]:
    """Raises Refused (400) for a body that is not of the form, or lacks what the rubric shows."""
    value = object_of(body, SHAPE)
    queries, prompts = texts_of(value, "query", SHAPE), texts_of(value, "prompts", SHAPE)
    columns = {name: column for name, column in value.items() if name not in ("query", "prompts")}
    for name, column in {"prompts": prompts, **columns}.items():
        if not isinstance(column, list) or len(column) != len(queries):
            found = f"{len(column)} values" if isinstance(column, list) else "no list"
            raise Refused(400, f"{name!r} has {found} for {len(queries)} queries: {SHAPE}.")
    labels = columns.pop("labels", [None] * len(queries))
    cases = []
    for place, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
        row = {name: column[place] for name, column in columns.items()}
        case = Case(prompt, response_of(query, prompt, place, SHAPE), labels[place], row, f"query[{place}]")
        try:
            write_prompt(rubric, case)
        except UserError as error:
            raise Refused(400, str(error)) from None
        cases.append(case)
    return cases


def answer(judged: Sequence[Judged], rubric: Rubric) -> dict[str, Any]:
    """Raises Refused where the judge gave no verdict: 502 where another try may do, 422 where none would."""
    verdicts = [each.verdict for each in judged]
    lost = [(place, v) for place, v in enumerate(verdicts) if isinstance(v, NoVerdict)]
    if lost:
        place, first = lost[0]
        raise Refused(
            422 if all(verdict.reason in OF_THE_TEXT for _, verdict in lost) else 502,
            f"no verdict on {len(lost)} of {len(verdicts)}: of query[{place}] ({first.reason}: {first.detail}).",
        )
    good = [verdict for verdict in verdicts if isinstance(verdict, Verdict)]
    rewards = [verdict.reward for verdict in good]
    logs = {criterion.name: [verdict.numbers[criterion.name] for verdict in good] for criterion in rubric.criteria}
    logs["cut"] = [float(verdict.cut > 0) for verdict in good]
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs, "notes": [verdict.note() for verdict in good]}
