"""Subjects that roll up: counts by a slow reference, taxonomies in all their forms, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from answer_rows import row
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.figures import summarise
from openrlhf_ext.evaluation.subjects import (
    Taxonomy,
    load_taxonomy,
    roll_up,
    subjects_in,
    taxonomy_of_ids,
)

FORMS = {
    "flat.yaml": "1: Heart\n1.4: Rhythm\n1.4.2: Fibrillation\n1.10: Valves\n2: Lung\n",
    "nested.yaml": """
1:
  name: Heart
  children:
    1.4: {name: Rhythm, children: {1.4.2: Fibrillation}}
    1.10: Valves
2: {name: Lung}
""",
    "list.json": json.dumps(
        [
            {"id": "1", "name": "Heart", "children": [
                {"id": "1.4", "name": "Rhythm", "children": [{"id": "1.4.2", "name": "Fibrillation"}]},
                {"id": "1.10", "name": "Valves"}]},
            {"id": "2", "name": "Lung"},
        ]
    ),
    "numbers.json": '{"1": "Heart", "1.4": {"name": "Rhythm"}, "1.10": "Valves", "1.4.2": "Fibrillation", "2": "Lung"}',
    "table.csv": "id,name\n1,Heart\n1.4,Rhythm\n1.10,Valves\n1.4.2,Fibrillation\n2,Lung\n",
    "rows.jsonl": """
{"id": "2", "name": "Lung"}
{"id": "1.4.2", "name": "Fibrillation"}
{"id": "1.10", "name": "Valves"}
{"id": "1.4", "name": "Rhythm"}
{"id": "1", "name": "Heart"}
""",
}  # fmt: skip


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same_taxonomy(tmp_path: Path, name: str) -> None:
    found = load_taxonomy(written(tmp_path, name, FORMS[name]))
    assert [(each.id, each.name, each.parent) for each in found] == [
        ("1", "Heart", None), ("1.4", "Rhythm", "1"), ("1.4.2", "Fibrillation", "1.4"), ("1.10", "Valves", "1"),
        ("2", "Lung", None),
    ]  # fmt: skip
    assert found.line("1.4.2") == ("1.4.2", "1.4", "1")
    assert [found.depth(each.id) for each in found] == [1, 2, 3, 2, 1]


def test_a_table_of_two_levels_keeps_its_ids(tmp_path: Path) -> None:
    found = load_taxonomy(written(tmp_path, "t.csv", "id,name\n1,A\n1.1,B\n1.10,C\n"))
    assert [each.id for each in found] == ["1", "1.1", "1.10"]


def test_parents_that_the_ids_do_not_name(tmp_path: Path) -> None:
    found = load_taxonomy(written(tmp_path, "t.csv", "id,name,parent\nvalves,Valves,heart\nheart,Heart,\n"))
    assert found.line("valves") == ("valves", "heart")


def test_a_level_that_is_missing_is_added_without_a_name(tmp_path: Path) -> None:
    found = load_taxonomy(written(tmp_path, "t.yaml", "1: Heart\n1.4.2: Fibrillation\n"))
    assert found.line("1.4.2") == ("1.4.2", "1.4", "1")
    assert found.subjects["1.4"].name == ""


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.yaml", "just words", "neither ids with names nor a list"),
        ("t.yaml", "", "neither ids with names"),
        ("t.yaml", "{}", "has no subjects"),
        ("t.yaml", "1: a\n1: b\n", "1 is there twice"),
        ("t.json", '{"1": "a", "1": "b"}', "1 is there twice"),
        ("t.json", "{", "cannot be read"),
        ("t.yaml", "1: {name: a, kids: {}}", "the key 'kids'"),
        ("t.yaml", "UNKNOWN: a", "stands for none"),
        ("t.json", '[{"id": "1", "name": "a"}, {"id": "1", "name": "b"}]', "has 1 twice"),
        ("t.csv", "id,title\n1,a\n", "has no column 'name'"),
        ("t.csv", "id,name\n,a\n", "give one id"),
        ("t.csv", "id,name,parent\na,A,b\n", "the parent b of a is not there"),
        ("t.csv", "id,name,parent\na,A,b\nb,B,a\n", "among its own ancestors"),
        ("t.jsonl", '{"id": 1.1, "name": "a"}', "is no text"),
        ("t.txt", "1: a", "does not end like one"),
    ],
)
def test_what_is_no_taxonomy_is_said_in_a_sentence(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_taxonomy(written(tmp_path, name, text))
    with pytest.raises(DataError, match="does not exist"):
        load_taxonomy(tmp_path / "none.yaml")


IDS = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))


@given(rows=st.lists(st.lists(IDS, max_size=4), max_size=12), known=st.lists(IDS, min_size=1, max_size=8))
def test_a_row_counts_once_in_each_of_its_subjects_and_their_ancestors(rows: list[list[str]], known: list[str]) -> None:
    taxonomy = taxonomy_of_ids(known)
    found = roll_up(rows, taxonomy)
    for subject in taxonomy:
        inside = [
            place
            for place, ids in enumerate(rows)
            if any(id in taxonomy and f"{id}.".startswith(f"{subject.id}.") for id in ids)
        ]
        assert list(found.places.get(subject.id, [])) == inside
    for id in {id for ids in rows for id in ids}:
        assert found.unknown.get(id, 0) == (0 if id in taxonomy else sum(id in ids for ids in rows))
    # Nothing is lost: a row is in a subject at the top, or among those without one.
    at_top = {place for each in taxonomy if each.parent is None for place in found.places.get(each.id, [])}
    assert at_top | set(found.without) == set(range(len(rows))) and not at_top & set(found.without)


def test_a_report_of_three_levels(tmp_path: Path) -> None:
    taxonomy = load_taxonomy(written(tmp_path, "t.yaml", FORMS["flat.yaml"]))
    rows = [
        row("a", "right", columns={"subject": "1.4.2"}),
        row("b", "wrong", columns={"subject": ["1.4.2", "1.10"]}),
        row("c", "right", columns={"subject": "1.4; 2"}),
        row("d", "right", columns={"subject": "7.1"}),
        row("e", "wrong", columns={"subject": "UNKNOWN"}),
        row("f", "wrong", columns={"subject": None}),
        row("g", "right", columns={"subject": ["2", "7.1"]}),
    ]
    found = summarise(rows, subject_column="subject", taxonomy=taxonomy)["subjects"]
    table = {n["id"]: (n["depth"], n["name"], n["outcomes"]["right"], n["answers"]) for n in found["nodes"]}
    assert table == {
        "1": (1, "Heart", 2, 3),
        "1.4": (2, "Rhythm", 2, 3),
        "1.4.2": (3, "Fibrillation", 1, 2),
        "1.10": (2, "Valves", 0, 1),
        "2": (1, "Lung", 2, 2),
    }
    assert list(table) == ["1", "1.4", "1.4.2", "1.10", "2"]
    assert found["unknown"] == {"7.1": 2, "UNKNOWN": 1}
    assert found["without"]["answers"] == 3
    json.dumps(found)


def test_without_a_file_the_ids_are_the_hierarchy() -> None:
    rows = [row("a", "right", columns={"subject": "1.4.2"}), row("b", "wrong", columns={"subject": "1.5"})]
    found = summarise(rows, subject_column="subject")["subjects"]
    assert [(node["id"], node["answers"]) for node in found["nodes"]] == [
        ("1", 2),
        ("1.4", 1),
        ("1.4.2", 1),
        ("1.5", 1),
    ]
    assert found["unknown"] == {} and found["without"] is None


def test_ids_in_a_column() -> None:
    assert subjects_in("1.4.2", "") == ["1.4.2"]
    assert subjects_in(" 1.4 ;2, 2", "") == ["1.4", "2"]
    assert subjects_in(["1", 2, "1"], "") == ["1", "2"]
    assert subjects_in(None, "") == subjects_in("", "") == subjects_in([], "") == []
    for wrong in (1.1, True, {"id": "1"}):
        with pytest.raises(DataError, match=r"row 3: its subject .* is no text"):
            subjects_in(wrong, "row 3")


def test_an_empty_taxonomy_lists_all() -> None:
    assert roll_up([["1"]], Taxonomy({})).unknown == {"1": 1}
