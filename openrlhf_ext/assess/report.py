"""What was judged, in figures: rates of each model, what is preferred, how far raters and judge agree.

An item counts once, by what most of its raters say; where no word has most votes it is disputed, counted, and in no
rate. Answers to one prompt are no independent evidence, so intervals are over prompts.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from openrlhf_ext.assess.assessment import Assessment
from openrlhf_ext.assess.opinions import Opinions
from openrlhf_ext.assess.verdicts import KINDS, Preference
from openrlhf_ext.evaluation.agreement import (
    LEVEL,
    Estimate,
    agreement,
    as_json,
    cohens_kappa,
    krippendorffs_alpha,
    wilson,
)
from openrlhf_ext.evaluation.answers import Answerer
from openrlhf_ext.evaluation.comparison import compare_rates
from openrlhf_ext.evaluation.figures import rate
from openrlhf_ext.evaluation.sentences import difference_sentence, rate_sentence, threshold_sentence

Z = float(stats.norm.ppf((1 + LEVEL) / 2))


def report(
    assessment: Assessment, held: Sequence[Opinions], *, at_most: float, resamples: int, seed: int
) -> dict[str, Any]:
    """As JSON values, null for what cannot be told.

    `models` with their `kinds`, and `difference` of two (hallucination); or `preference`; `raters`; `agreement` of the
    raters; and `judge`: how far the verdicts in the tables of answers agree with the people.
    """
    draws = {"resamples": resamples, "seed": seed}
    hallucination = assessment.task == "hallucination"
    judge = [_judge(model, held, draws) for model in _judged(assessment)] if hallucination else _scores(held, draws)
    return {
        "task": assessment.task,
        "items": len(assessment.items),
        "left_out": dict(assessment.left_out),
        "judgements": sum(len(each.judgements) for each in held),
        "unjudged": sum(not each.judgements for each in held),
        "disputed": sum(each.disputed for each in held),
        "raters": [_progress(assessment, held, rater) for rater in assessment.raters],
        "models": [_model(model, held, at_most) for model in assessment.models] if hallucination else None,
        "difference": _difference(assessment.models, held, seed) if hallucination else None,
        "preference": None if hallucination else _preference(assessment.models, held),
        "agreement": _raters_agree(assessment.raters, held, draws),
        "judge": judge,
    }


def _progress(assessment: Assessment, held: Sequence[Opinions], rater: str) -> dict[str, Any]:
    own = [each.judgements[rater] for each in held if rater in each.judgements]
    seconds = [judgement.seconds for judgement in own if judgement.seconds is not None]
    return {
        "name": rater,
        "judged": len(own),
        "of": len(assessment.order(rater)),
        "median_seconds": float(sorted(seconds)[len(seconds) // 2]) if seconds else None,
    }


def _model(model: Answerer, held: Sequence[Opinions], at_most: float) -> dict[str, Any]:
    own = [each for each in held if each.item.answers[0].model == model.fingerprint]
    settled = [each for each in own if each.settled]
    bad = [each for each in settled if each.verdict]
    questions = len({each.item.row for each in settled})
    found = as_json(_rate(settled, bad))
    kinds = {kind: [each for each in bad if each.kind == kind] for kind in KINDS}
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "judged": len(settled),
        "questions": questions,
        "disputed": sum(each.disputed for each in own),
        "hallucinated": len(bad),
        "rate": found,
        "sentence": rate_sentence(len(bad), len(settled), found, questions=questions),
        "claim": _claim(found, at_most, questions),
        "kinds": {kind: {"n": len(of), "rate": as_json(_rate(settled, of))} for kind, of in kinds.items()},
        "kind_disputed": sum(each.kind is None for each in bad),
    }


def _rate(settled: Sequence[Opinions], hits: Sequence[Opinions]) -> Estimate:
    """With answers to one question taken together."""
    keys = {each.item.key for each in hits}
    parts: dict[str, list[bool]] = {}
    for each in settled:
        parts.setdefault(each.item.row, []).append(each.item.key in keys)
    return rate([sum(part) / len(part) for part in parts.values()], len(settled))


def _claim(found: Mapping[str, Any], at_most: float, n: int) -> dict[str, Any]:
    """Whether at most so large a part is hallucinated: shown or refuted by the whole interval, else open."""
    value, low, high = found["value"], found["low"], found["high"]
    standing = "open"
    if value is not None:
        standing = "shown" if high <= at_most else "refuted" if low > at_most else "open"
    needed = None if value is None or standing != "open" else questions_needed(value, at_most)
    sentence = threshold_sentence(found, at_most, n, at_least=False)
    if needed is not None:
        sentence += f"; if the rate stays, about {needed} questions would tell"
    return {"at_most": at_most, "standing": standing, "questions_needed": needed, "sentence": sentence}


def questions_needed(part: float, threshold: float) -> int | None:
    """How many independent rows put Wilson's interval of `part` on one side of `threshold`; None where none do.

    A bound of the interval is where |part - t| = z sqrt(t (1 - t) / n).
    """
    if part == threshold:
        return None
    return math.ceil(Z**2 * threshold * (1 - threshold) / (threshold - part) ** 2)


def _difference(models: Sequence[Answerer], held: Sequence[Opinions], seed: int) -> dict[str, Any] | None:
    """The second model against the first on the prompts of which answers of both are settled; None without such."""
    of_prompt: dict[str, dict[str, list[bool]]] = {}
    for each in held:
        if each.settled:
            own = of_prompt.setdefault(each.item.row, {model.fingerprint: [] for model in models})
            own[each.item.answers[0].model].append(bool(each.verdict))
    sides = [list(own.values()) for own in of_prompt.values()]
    parts = [(own[0], own[1]) for own in sides if len(own) == 2 and all(own)]
    if not parts:
        return None
    found = compare_rates(parts, seed)
    return {**found, "sentence": difference_sentence("hallucinated", found, better="low")}


def _preference(models: Sequence[Answerer], held: Sequence[Opinions]) -> dict[str, Any]:
    """The second model against the first, by what most raters say of each pair.

    The sign test takes the pairs of one prompt for one sign, by which model wins more of them.
    """
    first, second = models
    settled = [each for each in held if each.settled]
    decided = [each for each in settled if each.verdict is not None]
    won = [each for each in decided if each.verdict == second.fingerprint]
    signs: Counter[str] = Counter()
    for each in decided:
        signs[each.item.row] += 1 if each.verdict == second.fingerprint else -1
    ahead, behind = sum(sign > 0 for sign in signs.values()), sum(sign < 0 for sign in signs.values())
    shown = [judgement.verdict for each in held for judgement in each.judgements.values()]
    chosen = [each for each in shown if isinstance(each, Preference) and each.preferred is not None]
    found = as_json(_rate(decided, won))
    return {
        "first": {"name": first.name, "fingerprint": first.fingerprint, "wins": len(decided) - len(won)},
        "second": {"name": second.name, "fingerprint": second.fingerprint, "wins": len(won)},
        "ties": len(settled) - len(decided),
        "win_rate": found,  # of the second, among the pairs that have a winner
        "sentence": rate_sentence(len(won), len(decided), found, questions=len(signs)),
        "sign_test_p": float(stats.binomtest(ahead, ahead + behind).pvalue) if ahead + behind else None,
        "shown_first_won": as_json(wilson(sum(each.preferred == each.first for each in chosen), len(chosen))),
    }


def _raters_agree(raters: Sequence[str], held: Sequence[Opinions], draws: Mapping[str, int]) -> dict[str, Any]:
    pairs = []
    for one, other in itertools.combinations(raters, 2):
        both = [each for each in held if one in each.judgements and other in each.judgements]
        mine, theirs = ([each.words[rater] for each in both] for rater in (one, other))
        pairs.append(
            {
                "raters": [one, other],
                "items": len(both),
                "same": as_json(wilson(sum(a == b for a, b in zip(mine, theirs)), len(both))),
                "kappa": as_json(cohens_kappa(mine, theirs, clusters=_rows(both), **draws)),
            }
        )
    several = [each for each in held if len(each.judgements) > 1]
    alpha = krippendorffs_alpha([list(each.words.values()) for each in several], clusters=_rows(several), **draws)
    return {"items": len(several), "pairs": pairs, "alpha": as_json(alpha)}


def _judged(assessment: Assessment) -> list[Answerer]:
    """The models of which the tables hold verdicts."""
    found = {answer.model for item in assessment.items for answer in item.answers if answer.judged is not None}
    return [model for model in assessment.models if model.fingerprint in found]


def _judge(model: Answerer, held: Sequence[Opinions], draws: Mapping[str, int]) -> dict[str, Any]:
    """The judge on this model's answers, held against the people: positive is an answer that is right."""
    own = [each for each in held if each.settled and each.item.answers[0].model == model.fingerprint]
    told = [each for each in own if each.item.answers[0].judged is not None]
    found = agreement(
        [not each.verdict for each in told],
        [bool(each.item.answers[0].judged) for each in told],
        clusters=_rows(told),
        resamples=draws["resamples"],
        seed=draws["seed"],
    )
    return {"model": model.name, "items": len(told), "no_verdict": len(own) - len(told), **as_json(found)}


def _scores(held: Sequence[Opinions], draws: Mapping[str, int]) -> list[dict[str, Any]]:
    """Which of two answers has the higher score in the tables, held against the people; empty without scores."""
    own = [each for each in held if each.settled]
    told = [each for each in own if all(answer.score is not None for answer in each.item.answers)]
    if not told:
        return []
    people = [each.verdict for each in told]
    scored = [_higher(each) for each in told]
    return [
        {
            "model": "the higher score",
            "items": len(told),
            "no_verdict": len(own) - len(told),
            "accuracy": as_json(wilson(sum(a == b for a, b in zip(people, scored)), len(told))),
            "kappa": as_json(cohens_kappa(people, scored, clusters=_rows(told), **draws)),
        }
    ]


def _higher(each: Opinions) -> str | None:
    first, second = each.item.answers
    assert first.score is not None and second.score is not None
    return None if first.score == second.score else (first if first.score > second.score else second).model


def _rows(held: Sequence[Opinions]) -> list[str]:
    return [each.item.row for each in held]
