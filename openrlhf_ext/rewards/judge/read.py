"""A judge's reply, read strictly: what does not follow the schema to the letter is no verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from openrlhf_ext.rewards.judge.rubric import REASONING, TIE, A, B, Mode, Rubric, Value

LONGEST_REPLY = 100_000


class NotAVerdict(Exception):
    """What is wrong with a reply, in part of a sentence."""


def read_verdict(rubric: Rubric, mode: Mode, text: str) -> dict[str, Value]:
    """The values of a reply by their names, the reasoning included. Raises NotAVerdict.

    The whole reply is one JSON object with exactly the schema's keys, each once, of their JSON types and ranges.
    """
    found = read_json(text)
    if not isinstance(found, dict):
        raise NotAVerdict(f"{type(found).__name__} instead of an object")
    names = [criterion.name for criterion in rubric.criteria]
    keys = [*([REASONING] if rubric.reasoning else []), *names]
    missing = [key for key in keys if key not in found]
    strange = [key for key in found if key not in keys]
    if missing or strange:
        parts = [f"without {', '.join(missing)}"] * bool(missing) + [f"with unknown {strange[:3]}"] * bool(strange)
        raise NotAVerdict("an object " + " and ".join(parts))
    if rubric.reasoning:
        reasoning = found[REASONING]
        if not isinstance(reasoning, str) or len(reasoning) > rubric.reasoning.max_chars:
            raise NotAVerdict(f"its reasoning is not a text of at most {rubric.reasoning.max_chars} characters")
    for criterion in rubric.criteria:
        value = found[criterion.name]
        if mode == "pairwise":
            good = isinstance(value, str) and value in (A, B, TIE)
        else:
            good = criterion.scale.holds(value)
        if not good:
            raise NotAVerdict(f"{criterion.name} is {json.dumps(value)[:80]}")
    return {key: found[key] for key in keys}


def json_reader(schema: Mapping[str, Any]) -> Callable[[str], Any]:
    """Reads replies that follow a schema of anyone's. Raises ValueError if it is not a JSON schema."""
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"the schema is not a JSON schema: {error.message}") from None
    validator = jsonschema.Draft202012Validator(schema)

    def read(text: str) -> Any:
        value = read_json(text)
        wrong = next(iter(validator.iter_errors(value)), None)
        if wrong is not None:
            raise NotAVerdict(wrong.message[:200])
        return value

    return read


def read_json(text: str) -> Any:
    """The one JSON value that `text` is. Raises NotAVerdict: not JSON, more than one value, a key twice, NaN."""
    if len(text) > LONGEST_REPLY:
        raise NotAVerdict(f"a reply of {len(text)} characters")
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise NotAVerdict(f"not one JSON value ({error.msg} at character {error.pos})") from None
    except (RecursionError, ValueError) as error:  # nested too deep; a number of too many digits
        raise NotAVerdict(f"not JSON that can be read ({type(error).__name__})") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotAVerdict("a key twice in an object")
    return found


def _no_constant(name: str) -> Any:
    raise NotAVerdict(f"{name} is not JSON")
