"""What each player of a game wins: an outcome of -1, 0 or 1, and 1 for the right form of its answer or -1.

The assessor wins if its verdict is what its note truly is. The attacker wins if the verdict is wrong and its note truly
is what the row asked for; it loses if the verdict is right, if the note is of the other kind, or if it gives none. A
verdict that is no verdict fools nobody: the attacker's outcome is then 0.

What a note truly is, says its row; of a rewritten note the judge says it, where there is one. Without a judge the
attacker is believed to have kept what the note is, which it will learn to abuse: train with a judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from game import ASSESSOR, ATTACKER, verdict_in

from openrlhf_ext.rewards.judge.prompt import Case, write_prompt
from openrlhf_ext.rewards.judge.rubric_file import load_rubric

RUBRIC = Path(__file__).with_name("rubric.yaml")
HOLDS_ERROR = "holds_error"


def reward_func(
    queries: Sequence[str],
    prompts: Sequence[str],
    labels: Sequence[str],
    *,
    error: Sequence[str],
    correction: Sequence[str],
    role: Sequence[str] | None = None,
    episode: Sequence[Mapping[str, Any]] | None = None,
    judge: Any = None,
) -> dict[str, Any]:
    """`scores`, what pass@1 counts, are 1 for a won game. The assessor's `right` is told for each kind of game.

    A rewrite that the judge has no verdict on gives both players NaN: its group fails, and is counted.
    Without roles (a trial call before any game was played) the queries are verdicts on notes as they are.
    """
    if role is None or episode is None:
        answers = [query[len(prompt) :] for query, prompt in zip(queries, prompts, strict=True)]
        role = [ASSESSOR] * len(answers)
        episode = [{"game": "vanilla", "rewrite": None, "verdict": verdict_in(answer)} for answer in answers]
    cases = [
        None if played["rewrite"] is None else Case(prompt, played["rewrite"], label, {"error": e, "correction": c})
        for prompt, label, played, e, c in zip(prompts, labels, episode, error, correction, strict=True)
    ]
    truths = iter(judged([case for case in cases if case is not None], judge))
    outcomes, forms = [], []
    logs: dict[str, list[float]] = {}
    for number, (player, label, played) in enumerate(zip(role, labels, episode, strict=True)):
        truth = label if played["rewrite"] is None else next(truths)
        own = attacker_outcome if player == ATTACKER else assessor_outcome
        outcomes.append(own(label, truth, played))
        forms.append(1.0 if kept_form(player, played) else -1.0)
        for name, value in own_logs(player, label, truth, played).items():
            logs.setdefault(name, [math.nan] * len(role))[number] = value
    return {
        "rewards": [outcome + form for outcome, form in zip(outcomes, forms, strict=True)],
        "scores": [outcome if math.isnan(outcome) else float(outcome > 0) for outcome in outcomes],
        "extra_logs": {"outcome": outcomes, "form": forms, **logs},
    }


def judged(cases: Sequence[Case], judge: Any) -> list[str | None]:
    """What the rewritten notes truly are; None where the judge has no verdict. Two that are the same are asked once."""
    if judge is None:
        return [case.label for case in cases]
    rubric = load_rubric(RUBRIC)
    # The attacker's text is data to the judge: the rubric's prompt stands it between fences that it cannot close.
    answers = judge.ask([write_prompt(rubric, case).text for case in cases], schema=rubric.schema())
    return [None if answer is None else "Harmful" if answer[HOLDS_ERROR] else "Safe" for answer in answers]


def assessor_outcome(label: str, truth: str | None, played: Mapping[str, Any]) -> float:
    if truth is None:
        return math.nan
    return 1.0 if played["verdict"] == truth else -1.0


def attacker_outcome(label: str, truth: str | None, played: Mapping[str, Any]) -> float:
    if played["rewrite"] is None:
        return -1.0
    if truth is None:
        return math.nan
    if truth != label or played["verdict"] == truth:
        return -1.0
    return 0.0 if played["verdict"] is None else 1.0


def kept_form(player: str, played: Mapping[str, Any]) -> bool:
    return played["rewrite" if player == ATTACKER else "verdict"] is not None


def own_logs(player: str, label: str, truth: str | None, played: Mapping[str, Any]) -> dict[str, float]:
    if truth is None:
        return {}
    if player == ATTACKER:
        return {} if played["rewrite"] is None else {"kept_kind": float(truth == label)}
    kind = "harmful" if label == "Harmful" else "benign"
    return {f"right/{played['game']}_{kind}": float(played["verdict"] == truth)}
