"""Rewards by rule: `rule:format`, `verify:exact` and `verify:math`, run as a reward file in a process of its own.

Each answer has a time limit, for a pattern may backtrack and mathematics may be without end. What cannot be told
within it, or breaks the library, counts as wrong, and is counted in the log `unfinished`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openrlhf_ext.rewards.limited import Unfinished, each_in_time
from openrlhf_ext.rewards.verify import extracted, is_exactly, is_mathematically

PART_OF_LIMIT = 0.9
"""Of the call's time limit, within which all is done: answers that are not begun by then have no reward."""
RIGHT, WRONG, NO_ANSWER = 1.0, 0.0, -1.0
"""What is told of an answer; no answer is wrong too, and counted."""

Case = tuple[str, Any]  # an answer and its label


def follows_format(answer: str, settings: Mapping[str, Any]) -> bool:
    """The pattern matches the whole answer, or the tags stand in order, each once, with spaces between them only."""
    tags = settings["format_tags"]
    if not tags:
        return re.fullmatch(settings["format_pattern"], answer, re.DOTALL) is not None
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    if any(answer.count(mark) != 1 for mark in marks):
        return False
    places = [answer.index(mark) for mark in marks]
    between = [answer[: places[0]]]
    for i in range(1, len(marks), 2):
        stop = places[i + 1] if i + 1 < len(marks) else len(answer)
        between.append(answer[places[i] + len(marks[i]) : stop])
    return places == sorted(places) and not "".join(between).strip()


def _judge_of(kind: str, settings: Mapping[str, Any]) -> Callable[[Case], float]:
    pattern = settings["answer_pattern"]

    def of_format(case: Case) -> float:
        return RIGHT if follows_format(case[0], settings) else WRONG

    def of_answer(case: Case) -> float:
        answer = extracted(case[0], pattern)
        if answer is None:
            return NO_ANSWER
        is_right = is_exactly if kind == "verify:exact" else is_mathematically
        return RIGHT if is_right(answer, case[1], pattern) else WRONG

    return of_format if kind == "rule:format" else of_answer


def reward_func(
    queries: Sequence[str],
    prompts: Sequence[str],
    labels: Sequence[Any],
    *,
    kind: str,
    settings: Mapping[str, Any],
    limit_s: float,
) -> dict[str, Any]:
    """`queries` are the answers alone. 1 for those that are right, 0 for the others, None where time ran out."""
    each_s = min(settings["verify_timeout_s"], PART_OF_LIMIT * limit_s / 2)
    until = time.monotonic() + PART_OF_LIMIT * limit_s - each_s
    if kind != "rule:format" and any(label is None for label in labels):
        raise ValueError(
            f"{kind} compares answers to labels, and a row has none: name their column by --data.label_key"
        )
    if kind == "verify:math":
        import math_verify  # noqa: F401 (once, before it is forked)
    cases = list(zip(queries, [repr(label) for label in labels], strict=True))
    first = {case: place for place, case in reversed(list(enumerate(cases)))}  # siblings often say the same
    places = sorted(first.values())
    found = each_in_time(
        _judge_of(kind, settings),
        [(queries[place], labels[place]) for place in places],
        limit_s=each_s,
        until=until,
    )
    told = dict(zip(places, found, strict=True))
    verdicts = [told[first[case]] for case in cases]
    logs = {"unfinished": [float(isinstance(verdict, Unfinished)) for verdict in verdicts]}
    if kind != "rule:format":
        logs["no_answer"] = [float(verdict == NO_ANSWER) for verdict in verdicts]
    return {"rewards": [_reward(verdict) for verdict in verdicts], "extra_logs": logs}


def _reward(verdict: Any) -> float:
    if isinstance(verdict, Unfinished):
        return float("nan") if verdict.reason == "late" else WRONG
    return max(verdict, WRONG)
