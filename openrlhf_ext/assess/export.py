"""Judgements as rows of files: each of them whole, and as prompt, chosen and rejected for training."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf_ext.assess.assessment import Assessment
from openrlhf_ext.assess.items import Item, ItemAnswer
from openrlhf_ext.assess.opinions import Opinions
from openrlhf_ext.assess.verdicts import Hallucination


@dataclass(frozen=True, slots=True)
class PreferenceRows:
    """`left_out` counts what became no row, by its reason."""

    rows: Sequence[Mapping[str, Any]]
    left_out: Mapping[str, int]


def judgement_rows(assessment: Assessment, held: Sequence[Opinions]) -> list[dict[str, Any]]:
    """One for each judgement that holds, with what was read and whose it is."""
    return [
        {
            "item": opinion.item.key,
            "rater": rater,
            "at": judgement.at,
            "seconds": judgement.seconds,
            "note": judgement.note,
            "prompt": opinion.item.prompt,
            "context": opinion.item.context,
            "reference": opinion.item.reference,
            **_said(assessment, opinion.item, judgement.verdict),
        }
        for opinion in held
        for rater, judgement in opinion.judgements.items()
    ]


def _said(assessment: Assessment, item: Item, verdict: Any) -> dict[str, Any]:
    whose = [{"model": assessment.model(each.model).name, "fingerprint": each.model} for each in item.answers]
    if isinstance(verdict, Hallucination):
        text = item.answers[0].text
        passages = [{"start": start, "end": end, "text": text[start:end]} for start, end in verdict.spans]
        said = {"hallucinated": verdict.present, "kind": verdict.kind, "passages": passages}
        return {**whose[0], "answer": text, **said}
    preferred = None if verdict.preferred is None else assessment.model(verdict.preferred).name
    answers = [{**model, "answer": each.text} for model, each in zip(whose, item.answers)]
    return {"answers": answers, "preferred": preferred, "reasons": list(verdict.reasons)}


def preference_rows(assessment: Assessment, held: Sequence[Opinions], *, with_references: bool) -> PreferenceRows:
    """What most raters say, as pairs: the preferred answer over the other; an answer without a hallucination over one
    with, where both are to one prompt; with `with_references` also the reference over an answer with one.
    """
    left_out: Counter[str] = Counter(
        unjudged=sum(not each.judgements for each in held), disputed=sum(each.disputed for each in held)
    )
    settled = [each for each in held if each.settled]
    if assessment.task == "preference":
        pairs = list(_preferred(settled, left_out))
    else:
        pairs = list(_clean_over_bad(settled, left_out))
        if with_references:
            pairs += _references_over_bad(settled, left_out)
    rows = []
    for item, chosen, rejected, votes in pairs:
        if not chosen.text.strip() or not rejected.text.strip():
            left_out["empty"] += 1
        elif chosen.text.strip() == rejected.text.strip():
            left_out["identical"] += 1
        else:
            names = [assessment.model(each.model).name if each.model else "reference" for each in (chosen, rejected)]
            rows.append(
                {
                    "prompt": item.prompt,
                    "chosen": chosen.text,
                    "rejected": rejected.text,
                    "context": item.context,
                    "chosen_model": names[0],
                    "rejected_model": names[1],
                    "votes": votes,
                }
            )
    return PreferenceRows(rows, {reason: n for reason, n in left_out.items() if n})


Pair = tuple[Item, ItemAnswer, ItemAnswer, str]
"""Of one prompt: the chosen answer, the rejected one, and the votes for it."""


def _preferred(settled: Sequence[Opinions], left_out: Counter[str]) -> Iterator[Pair]:
    for each in settled:
        if each.verdict is None:
            left_out["ties"] += 1
            continue
        chosen, rejected = sorted(each.item.answers, key=lambda answer: answer.model != each.verdict)
        yield each.item, chosen, rejected, each.votes


def _clean_over_bad(settled: Sequence[Opinions], left_out: Counter[str]) -> Iterator[Pair]:
    of_prompt: dict[str, list[Opinions]] = {}
    for each in settled:
        of_prompt.setdefault(each.item.row, []).append(each)
    for answers in of_prompt.values():
        clean = [each for each in answers if not each.verdict]
        bad = [each for each in answers if each.verdict]
        if not clean or not bad:
            left_out["prompts without one of each"] += 1
        for one, other in itertools.product(clean, bad):
            yield one.item, one.item.answers[0], other.item.answers[0], f"{one.votes} and {other.votes}"


def _references_over_bad(settled: Sequence[Opinions], left_out: Counter[str]) -> Iterator[Pair]:
    for each in settled:
        if not each.verdict:
            continue
        if each.item.reference is None:
            left_out["without a reference"] += 1
        else:
            yield each.item, ItemAnswer("", each.item.reference), each.item.answers[0], each.votes
