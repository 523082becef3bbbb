"""A hierarchy of subjects: ids such as 1.4.2, which roll up to 1.4 and 1, with their names from a file.

A row has one subject or several. It counts in each of them and in each of their ancestors, in each once. Ids that the
taxonomy does not have are listed, never dropped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from openrlhf_ext.data.readers import read_csv, read_json
from openrlhf_ext.errors import DataError, missing_file

UNKNOWN = "UNKNOWN"
"""The subject of a row for which none could be found."""

TREES = (".yaml", ".yml", ".json")
TABLES = (".csv", ".jsonl")


@dataclass(frozen=True, slots=True)
class Subject:
    """`parent` is an id; None at the top."""

    id: str
    name: str
    parent: str | None = None


@dataclass(frozen=True)
class Taxonomy:
    """Subjects by their ids, parents before children, siblings in the order of their numbers."""

    subjects: Mapping[str, Subject]
    origin: str = ""

    def __contains__(self, id: str) -> bool:
        return id in self.subjects

    def __iter__(self) -> Iterator[Subject]:
        return iter(self.subjects.values())

    def __len__(self) -> int:
        return len(self.subjects)

    def line(self, id: str) -> tuple[str, ...]:
        """The subject and its ancestors, itself first: 1.4.2, 1.4, 1."""
        return self._lines[id]

    def depth(self, id: str) -> int:
        """1 at the top."""
        return len(self._lines[id])

    @cached_property
    def _lines(self) -> dict[str, tuple[str, ...]]:
        lines: dict[str, tuple[str, ...]] = {}
        for subject in self:  # parents come first
            lines[subject.id] = (subject.id, *(lines[subject.parent] if subject.parent is not None else ()))
        return lines


@dataclass(frozen=True, slots=True)
class RolledUp:
    """Places of rows by subject (in the taxonomy's order, subjects without rows left out), and what fits in none:
    how many rows have each unknown id, and the places of rows without any known one.
    """

    places: Mapping[str, Sequence[int]]
    unknown: Mapping[str, int] = field(default_factory=dict)
    without: Sequence[int] = ()


def roll_up(subjects_of_rows: Sequence[Sequence[str]], taxonomy: Taxonomy) -> RolledUp:
    """`subjects_of_rows`: the ids of each row."""
    places: dict[str, list[int]] = {subject.id: [] for subject in taxonomy}
    unknown: Counter[str] = Counter()
    without = []
    for place, ids in enumerate(subjects_of_rows):
        known = [id for id in ids if id in taxonomy]
        unknown.update({id for id in ids if id not in taxonomy})
        for subject in {ancestor for id in known for ancestor in taxonomy.line(id)}:
            places[subject].append(place)
        if not known:
            without.append(place)
    counted = dict(sorted(unknown.items(), key=lambda item: (-item[1], item[0])))
    return RolledUp({id: found for id, found in places.items() if found}, counted, without)


def subjects_in(value: Any, where: str) -> list[str]:
    """The ids of a column's value: a text (several with commas or semicolons), a whole number, a list of those; none
    of None and of an empty text. Raises DataError for anything else: as decimal numbers 1.1 and 1.10 are one.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return list(dict.fromkeys(part.strip() for part in value.replace(";", ",").split(",") if part.strip()))
    if isinstance(value, int) and not isinstance(value, bool):
        return [str(value)]
    if isinstance(value, list | tuple):
        return list(dict.fromkeys(id for item in value for id in subjects_in(item, where)))
    raise DataError(
        f"{where}: its subject {json.dumps(value, default=str)[:60]} is no text: write ids as texts, such as "
        '"1.4.2", in JSONL (as numbers 1.1 and 1.10 are one), or a list of them.'
    )


def taxonomy_of_ids(ids: Iterable[str]) -> Taxonomy:
    """The hierarchy that ids make by their dots, without names."""
    return _ordered([Subject(id, "") for id in dict.fromkeys(ids)], "")


def taxonomy_of_nodes(nodes: Iterable[Mapping[str, Any]]) -> Taxonomy:
    """The hierarchy of one or several reports, by their nodes' id, name and parent; the first name of an id holds."""
    found: dict[str, Subject] = {}
    for node in nodes:
        found.setdefault(node["id"], Subject(node["id"], node["name"], node["parent"]))
    return _ordered(list(found.values()), "")


def load_taxonomy(path: str | Path) -> Taxonomy:
    """From a tree or a table.

    A tree (YAML, JSON) has ids with names (`1.4: Arrhythmia`), or with what is below them (`1.4: {name: ..., children:
    ...}`, children again such a tree), or is a list of objects with id, name and children. A table (CSV, JSONL) has the
    columns id and name. The parent is the object around it, else the column or key `parent`, else the id without its
    last part; where that is missing it is added without a name.
    Raises DataError: no such file, none of these forms, an id twice, a parent that is not there, a circle.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"the taxonomy {missing_file(path)}")
    suffix = path.suffix.lower()
    if suffix in TREES:
        found = list(_of_tree(_parsed(path), None, path))
    elif suffix in TABLES:
        rows = read_csv(path, typed=False) if suffix == ".csv" else read_json(path)
        found = [_of_row(row, f"row {number} of {path}") for number, row in enumerate(rows, start=1)]
    else:
        raise DataError(f"the taxonomy {path} does not end like one: give {', '.join((*TREES, *TABLES))}.")
    if not found:
        raise DataError(f"the taxonomy {path} has no subjects: give ids with names, such as 1.4: Arrhythmia.")
    return _ordered(found, str(path))


def _parsed(path: Path) -> Any:
    """Every value stays the text that it is written as, for 1.10 is not 1.1; a key twice is an error."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return json.loads(text, parse_int=str, parse_float=str, object_pairs_hook=_each_once)
        return yaml.load(text, Loader=_Texts)
    except (ValueError, RecursionError, yaml.YAMLError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the taxonomy {path} cannot be read ({reason}): give YAML or JSON.") from None


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    twice = [name for name, n in Counter(name for name, _ in pairs).items() if n > 1]
    if twice:
        raise ValueError(f"{twice[0]} is there twice")
    return dict(pairs)


class _Texts(yaml.BaseLoader):
    """Scalars as texts, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _each_once([(str(key.value), None) for key, _ in node.value])
        return super().construct_mapping(node, deep)


def _of_tree(tree: Any, parent: str | None, path: Path) -> Iterator[Subject]:
    if isinstance(tree, Mapping):
        entries = [(str(id), entry) for id, entry in tree.items()]
    elif isinstance(tree, list) and all(isinstance(entry, Mapping) and entry.get("id") for entry in tree):
        entries = [(str(entry["id"]), entry) for entry in tree]
    else:
        where = f" below {parent}" if parent else ""
        raise DataError(
            f"the taxonomy {path}{where} is neither ids with names nor a list of objects with id and name: write "
            "1.4: Arrhythmia, or {id: 1.4, name: Arrhythmia}."
        )
    for id, entry in entries:
        if not isinstance(entry, Mapping):
            yield Subject(id.strip(), _name(entry, id, str(path)), parent)
            continue
        strange = [key for key in entry if key not in ("id", "name", "parent", "children")]
        if strange:
            raise DataError(
                f"the taxonomy {path}: {id} has the key {strange[0]!r}: there are id, name, parent and children."
            )
        yield Subject(id.strip(), _name(entry.get("name", ""), id, str(path)), parent or entry.get("parent") or None)
        if entry.get("children"):
            yield from _of_tree(entry["children"], id.strip(), path)


def _of_row(row: Mapping[str, Any], where: str) -> Subject:
    if "id" not in row or "name" not in row:
        raise DataError(
            f"the taxonomy, {where}, has no column {'name' if 'id' in row else 'id'!r}: give the columns id and name."
        )
    ids = subjects_in(row["id"], f"the taxonomy, {where}")
    if len(ids) != 1:
        raise DataError(f"the taxonomy, {where}, has the id {row['id']!r}: give one id, without commas.")
    return Subject(ids[0], _name(row["name"], ids[0], where), str(row.get("parent") or "").strip() or None)


def _name(value: Any, id: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"the taxonomy, {where}: the name of {id} is no text.")
    return value.strip()


def _ordered(found: Sequence[Subject], origin: str) -> Taxonomy:
    """With every parent, parents before children."""
    subjects: dict[str, Subject] = {}
    for subject in found:
        if subject.id in subjects or subject.id == UNKNOWN:
            what = f"{subject.id} twice" if subject.id in subjects else f"the id {UNKNOWN}, which stands for none"
            raise DataError(f"the taxonomy {origin} has {what}: give every subject an id of its own.")
        subjects[subject.id] = subject
    for subject in found:
        _add_parents(subject, subjects, origin)
    below: dict[str | None, list[Subject]] = {}
    for subject in subjects.values():
        below.setdefault(subject.parent, []).append(subject)
    ordered: dict[str, Subject] = {}
    waiting = sorted(below.get(None, []), key=_by_number, reverse=True)
    while waiting:
        subject = waiting.pop()
        ordered[subject.id] = subject
        waiting += sorted(below.get(subject.id, []), key=_by_number, reverse=True)
    lost = [id for id in subjects if id not in ordered]
    if lost:
        raise DataError(f"the taxonomy {origin}: {lost[0]} is among its own ancestors: correct its parent.")
    return Taxonomy(ordered, origin)


def _add_parents(subject: Subject, subjects: dict[str, Subject], origin: str) -> None:
    parent = subject.parent
    if parent is not None:
        if parent not in subjects:
            raise DataError(f"the taxonomy {origin}: the parent {parent} of {subject.id} is not there: add it.")
        return
    parent = subject.id.rpartition(".")[0] or None
    subjects[subject.id] = Subject(subject.id, subject.name, parent)
    if parent is not None and parent not in subjects:
        subjects[parent] = Subject(parent, "")
        _add_parents(subjects[parent], subjects, origin)


def _by_number(subject: Subject) -> list[tuple[int, int, str]]:
    """1.2 before 1.10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in subject.id.split(".")]
