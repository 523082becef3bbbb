"""The file of a rubric (YAML). Every mistake in it is one sentence, before any model is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from openrlhf_ext.errors import ConfigError, missing_file
from openrlhf_ext.rewards.judge.rubric import REASONING, Criterion, Limits, Reasoning, Rubric, Scale
from openrlhf_ext.rewards.judge.template import TemplateError, check_template

KEYS = ("instructions", "criteria", "reasoning", "reference", "reward", "limits")
CRITERION_KEYS = ("name", "description", "scale", "weight", "better")
SCALES = "boolean, {integer: [LOW, HIGH]}, {number: [LOW, HIGH]} or {choices: {NAME: VALUE, ...}}"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
LONGEST_REASONING = 4000


class _Wrong(Exception):
    """What is wrong and the remedy; the file's name is put in front of it."""


class _OneKeyLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not the last one's."""


def _mapping(loader: _OneKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
    if twice is not None:
        raise _Wrong(f"the key {twice!r} stands twice (line {node.start_mark.line + 1} on): leave one of them out")
    return loader.construct_mapping(node, deep=True)


_OneKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_rubric(path: str | Path) -> Rubric:
    """The rubric of a YAML file. Raises ConfigError for a file that is not there, not YAML, or not a rubric."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"rubric {missing_file(path)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"rubric {path}: it cannot be read ({error}): give a YAML file in UTF-8.") from None
    return read_rubric(text, str(path))


def read_rubric(text: str, origin: str = "rubric") -> Rubric:
    """The rubric that `text` is. Raises ConfigError that names `origin`, what is wrong and the remedy."""
    try:
        found = yaml.load(text, Loader=_OneKeyLoader)
        return _rubric(found, origin)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"rubric {origin}: it is not YAML ({where}{what}): mend that line.") from None
    except _Wrong as error:
        raise ConfigError(f"rubric {origin}: {error}.") from None


def _rubric(found: Any, origin: str) -> Rubric:
    if not isinstance(found, Mapping):
        raise _Wrong(f"it holds {_kind(found)} instead of keys: give at least instructions and criteria")
    _known(found, KEYS, "it")
    criteria = _criteria(found.get("criteria"))
    combine, reward_range = _reward(found.get("reward"), criteria)
    reference = found.get("reference", "label")
    if not isinstance(reference, str) or not reference:
        raise _Wrong("reference is no name: give label, or the name of a column")
    instructions = _instructions(found.get("instructions"), reference, "reference" in found)
    return Rubric(
        origin, instructions, criteria, _reasoning(found.get("reasoning")), reference, combine, reward_range,
        _limits(found.get("limits")),
    )  # fmt: skip


def _instructions(text: Any, reference: str, reference_given: bool) -> str:
    if not isinstance(text, str) or not text.strip():
        raise _Wrong("it has no instructions: give them as a text that shows {{ response }}")
    try:
        used = check_template(text)
    except TemplateError as error:
        raise _Wrong(f"its instructions: {error}") from None
    if "response" not in used:
        raise _Wrong("its instructions never show {{ response }}, so there is nothing to judge: put it in")
    if reference_given and "reference" not in used:
        raise _Wrong(f"reference {reference} is given, but its instructions never show {{{{ reference }}}}: put it in")
    return text


def _criteria(found: Any) -> tuple[Criterion, ...]:
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise _Wrong("criteria is no list of at least one criterion: give each its name, description and scale")
    criteria = tuple(_criterion(item, index) for index, item in enumerate(found, 1))
    names = [criterion.name for criterion in criteria]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise _Wrong(f"two criteria are named {twice}: give each a name of its own")
    return criteria


def _criterion(found: Any, index: int) -> Criterion:
    if not isinstance(found, Mapping):
        raise _Wrong(f"criterion {index} is {_kind(found)}: give it a name, a description and a scale")
    name = found.get("name")
    where = f"criterion {name if isinstance(name, str) else index}"
    _known(found, CRITERION_KEYS, where)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise _Wrong(f"criterion {index} has no usable name ({name!r}): letters, digits, _ and -, a letter first")
    if name == REASONING:
        raise _Wrong(f"a criterion is named {REASONING}, as the judge's own text is: give it another name")
    description = found.get("description")
    if not isinstance(description, str) or not description.strip():
        raise _Wrong(f"{where} has no description: say what the judge shall look at")
    better = found.get("better", "high")
    if better not in ("high", "low"):
        raise _Wrong(f"{where}: better is {better!r}: give high or low")
    weight = _number(found.get("weight", 1.0), f"{where}: weight")
    if weight <= 0:
        raise _Wrong(f"{where}: weight is {weight:g}: give a number above 0 (better: low turns a criterion round)")
    return Criterion(name, " ".join(description.split()), _scale(found.get("scale"), where), weight, better)


def _scale(found: Any, where: str) -> Scale:
    if found == "boolean":
        return Scale("boolean")
    if not isinstance(found, Mapping) or len(found) != 1:
        raise _Wrong(f"{where}: its scale is {found!r}: give {SCALES}")
    [(kind, value)] = found.items()
    if kind == "choices":
        return _choices(value, where)
    if kind not in ("integer", "number"):
        raise _Wrong(f"{where}: its scale is {found!r}: give {SCALES}")
    low, high = _range(value, f"{where}: its scale")
    if kind == "integer" and not (low.is_integer() and high.is_integer()):
        raise _Wrong(f"{where}: its scale is an integer from {low:g} to {high:g}: give whole numbers, or use number")
    return Scale(kind, low, high)


def _choices(found: Any, where: str) -> Scale:
    if not isinstance(found, Mapping) or len(found) < 2:
        raise _Wrong(f"{where}: choices are {found!r}: give at least two as NAME: VALUE")
    for name in found:
        if not isinstance(name, str):
            raise _Wrong(f"{where}: the choice {name!r} is {_kind(name)} in YAML: put its name in quotation marks")
        if not name.strip() or any(ord(char) < 32 or char in '"\\' for char in name):
            raise _Wrong(f"{where}: the choice {name!r} has a character that JSON would escape: use plain words")
    values = {name: _number(value, f"{where}: the choice {name}") for name, value in found.items()}
    if len(set(values.values())) < 2:
        raise _Wrong(f"{where}: all its choices have the same value, so it cannot tell anything: give them values")
    return Scale("choices", choices=values)


def _reasoning(found: Any) -> Reasoning | None:
    if found is None or found is False:
        return None
    if found is True:
        return Reasoning()
    if not isinstance(found, Mapping):
        raise _Wrong(f"reasoning is {_kind(found)}: give true, or {{description: TEXT, max_chars: N}}")
    _known(found, ("description", "max_chars"), "reasoning")
    default = Reasoning()
    description = found.get("description", default.description)
    if not isinstance(description, str) or not description.strip():
        raise _Wrong("reasoning: its description is no text: say what the judge shall write")
    most = _count(found.get("max_chars", default.max_chars), "reasoning: max_chars")
    if most > LONGEST_REASONING:
        raise _Wrong(f"reasoning: max_chars is {most}: give at most {LONGEST_REASONING}")
    return Reasoning(" ".join(description.split()).rstrip("."), most)


def _reward(found: Any, criteria: tuple[Criterion, ...]) -> tuple[Any, tuple[float, float]]:
    if found is None:
        return "mean", (0.0, 1.0)
    if not isinstance(found, Mapping):
        raise _Wrong(f"reward is {_kind(found)}: give {{combine: mean, range: [0, 1]}}")
    _known(found, ("combine", "range"), "reward")
    combine = found.get("combine", "mean")
    if combine not in ("mean", "product", "minimum"):
        raise _Wrong(f"reward: combine is {combine!r}: give mean, product or minimum")
    if combine != "mean" and any(criterion.weight != 1.0 for criterion in criteria):
        raise _Wrong(f"reward: combine {combine} knows no weights: leave the weights of the criteria out")
    return combine, _range(found.get("range", [0.0, 1.0]), "reward: range")


def _limits(found: Any) -> Limits:
    if found is None:
        return Limits()
    names = ("prompt", "response", "reference", "column")
    if not isinstance(found, Mapping):
        raise _Wrong(f"limits is {_kind(found)}: give characters by {', '.join(names)}")
    _known(found, names, "limits")
    return Limits(**{name: _count(value, f"limits: {name}") for name, value in found.items()})


def _known(found: Mapping[Any, Any], keys: Sequence[str], where: str) -> None:
    for key in found:
        if key not in keys:
            raise _Wrong(f"{where} has the unknown key {key!r}: there are {', '.join(keys)}")


def _range(found: Any, where: str) -> tuple[float, float]:
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != 2:
        raise _Wrong(f"{where} is {found!r}: give two numbers [LOW, HIGH]")
    low, high = (_number(value, where) for value in found)
    if low >= high:
        raise _Wrong(f"{where} goes from {low:g} to {high:g}: give the lower one first")
    return low, high


def _number(found: Any, where: str) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise _Wrong(f"{where} is {found!r}: give a number")
    return float(found)


def _count(found: Any, where: str) -> int:
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise _Wrong(f"{where} is {found!r}: give a whole number of at least 1")
    return found


def _kind(found: Any) -> str:
    names = {type(None): "nothing", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(found), "a list" if isinstance(found, list) else f"a {type(found).__name__}")
