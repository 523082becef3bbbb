"""Subjects given to rows by a language model: what it is asked, and how its answers are read, checked and mended.

An answer names one to three ids of the taxonomy, the primary one of them and a reason. What a rule can mend is mended
and named; an id that the taxonomy does not have is left out and named. Nothing is guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf_ext.evaluation.subjects import UNKNOWN, Taxonomy
from openrlhf_ext.rewards.judge.fence import Fence, shorten
from openrlhf_ext.rewards.judge.prompt import GUARD, REMINDER
from openrlhf_ext.rewards.judge.read import NotAVerdict, read_json
from openrlhf_ext.rewards.judge.rubric import Limits, Reasoning

FORM = 1
"""Of the prompt and the schema: annotations by another form are other annotations."""
MOST = 3
MOST_ENUMERATED = 250
"""Endpoints refuse schemas with many more values; the ids of a larger taxonomy are checked in the answer alone."""

REASON, SUBJECTS, PRIMARY = "reason", "subjects", "primary"
UNKNOWN_ID = "unknown_id"

_REASONING = Reasoning("in one sentence why")
_AROUND = " \t\r\n\"'`()[]{}<>#*:;,."
_BELOW_UNNAMED = re.compile(r"(\.[xX*?]+)+$")  # 1.4.x: something of 1.4


@dataclass(frozen=True, slots=True)
class Annotation:
    """`primary` is among the one to three `subjects`; both are UNKNOWN where there are none. `repairs` name what was
    mended, and each id that was left out as `unknown_id ID`.
    """

    subjects: Sequence[str]
    primary: str
    reason: str
    repairs: Sequence[str] = ()


def schema_of(taxonomy: Taxonomy) -> dict[str, Any]:
    """The JSON schema of an answer."""
    one: dict[str, Any] = {"type": "string"}
    if len(taxonomy) <= MOST_ENUMERATED:
        one["enum"] = [*(subject.id for subject in taxonomy), UNKNOWN]
    keys = {
        REASON: _REASONING.schema(),
        SUBJECTS: {"type": "array", "items": one, "minItems": 1, "maxItems": MOST},
        PRIMARY: one,
    }
    return {"type": "object", "properties": keys, "required": list(keys), "additionalProperties": False}


def prompt_of(texts: Mapping[str, str], taxonomy: Taxonomy, special_tokens: tuple[str, ...] = ()) -> str:
    """What the model is asked of a row; `texts` are its columns by name, each shown in a fence.

    All rows have the beginning with the taxonomy in common, which an engine with a prefix cache reads once.
    """
    fence = Fence(list(texts.values()), special_tokens)
    limit = Limits().column
    tree = [f"{'  ' * (taxonomy.depth(each.id) - 1)}{each.id} {each.name}".rstrip() for each in taxonomy]
    shown = [f"{name}: {fence(shorten(text, limit)[0])}" for name, text in texts.items()]
    return "\n\n".join(
        [
            GUARD,
            "Say which subjects the data below is about, by the ids of this list:",
            "\n".join([*tree, f"{UNKNOWN} none of these"]),
            "\n".join(shown),
            f"{REMINDER}\n"
            "Answer with one JSON object and nothing else, with these keys in this order:\n"
            f'- "{REASON}": {_REASONING.description}; text on one line of at most {_REASONING.max_chars} characters, '
            "without quotation marks\n"
            f'- "{SUBJECTS}": a list of one to {MOST} ids, of a subject and one below it the one below\n'
            f'- "{PRIMARY}": the id among them that it is most about',
        ]
    )


def read_annotation(text: str, taxonomy: Taxonomy) -> Annotation:
    """What an answer says, mended. Raises NotAVerdict for one that is no object with subjects as texts."""
    found = read_json(text)
    if not isinstance(found, dict) or SUBJECTS not in found:
        raise NotAVerdict(f"no object with {SUBJECTS}")
    said, first = found[SUBJECTS], found.get(PRIMARY) or ""
    said = [said] if isinstance(said, str) else said
    if not isinstance(said, list) or not all(isinstance(id, str) for id in (*said, first)):
        raise NotAVerdict(f"its {SUBJECTS} or its {PRIMARY} are no texts")
    repairs: list[str] = []
    subjects = _known(said, taxonomy, repairs)
    primary = _known([first], taxonomy, repairs if first not in said else []) if first else []
    subjects, chosen = _chosen(subjects, primary[0] if primary else None, repairs)
    reason = found.get(REASON)
    return Annotation(tuple(subjects), chosen, reason.strip() if isinstance(reason, str) else "", tuple(repairs))


def count_repairs(repairs_of_rows: Iterable[Sequence[str]]) -> tuple[dict[str, int], dict[str, int]]:
    """In how many rows each thing was mended, and how many have each unknown id."""
    mended: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for repairs in repairs_of_rows:
        mended.update({repair.partition(" ")[0] for repair in repairs})
        unknown.update({repair.partition(" ")[2] for repair in repairs if repair.startswith(f"{UNKNOWN_ID} ")})
    return dict(mended.most_common()), dict(unknown.most_common())


def _known(said: Iterable[str], taxonomy: Taxonomy, repairs: list[str]) -> list[str]:
    """The ids that are meant, each once; UNKNOWN among them where that is said."""
    names = {subject.name.casefold(): subject.id for subject in taxonomy if subject.name}
    meant: list[str] = []
    for each in said:
        readings = [*_readings(each), names.get(each.strip(_AROUND).casefold(), "")]
        id = next((reading for reading in readings if reading in taxonomy or reading == UNKNOWN), None)
        if id is None:
            repairs.append(f"{UNKNOWN_ID} {each.strip()[:40]}")
            continue
        if id != each:
            repairs.append("odd_id")
        if id in meant:
            repairs.append("duplicate")
        else:
            meant.append(id)
    return meant


def _readings(said: str) -> Iterator[str]:
    """What an id may be meant by, the plainest first: `1.4.2 Flutter`, `[1.4.2]`, `1-4-2`, `1.4.x` for 1.4."""
    yield said
    plain = said.strip(_AROUND)
    for part in (plain, re.split(r"[\s:,;()\[\]]", plain)[0].strip(_AROUND)):
        yield part
        yield _BELOW_UNNAMED.sub("", part)
        yield re.sub(r"[-_/]", ".", part)
        if part.upper() == UNKNOWN:
            yield UNKNOWN


def _chosen(subjects: Sequence[str], primary: str | None, repairs: list[str]) -> tuple[list[str], str]:
    """At most three of these subjects with the primary among them."""
    real = [id for id in subjects if id != UNKNOWN]
    if real and len(real) < len(subjects):
        repairs.append("unknown_beside_others")
    if primary is not None and primary != UNKNOWN:
        if primary not in real:
            repairs.append("primary_added")
            real.insert(0, primary)
    elif real:
        repairs.append("primary_replaced")
        primary = real[0]
    else:
        if not subjects or primary is None:
            repairs.append("empty")
        return [UNKNOWN], UNKNOWN
    if len(real) > MOST:
        repairs.append("too_many")
        others = [id for id in real if id != primary][: MOST - 1]
        real = [id for id in real if id == primary or id in others]
    return real, primary
