"""Who sees what, in which order, and that a folder never becomes another assessment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import FIRST, SECOND, Office, assessment, table

from openrlhf_ext.assess.assessment import (
    ASSESSMENT,
    JUDGEMENTS,
    check_raters,
    read_assessment,
    require_same,
    write_assessment,
)
from openrlhf_ext.assess.desk import visible
from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.evaluation.answers import Answerer


@given(items=st.integers(1, 25), raters=st.integers(1, 4), part=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_all_see_the_overlap_and_one_sees_each_other_item(items: int, raters: int, part: float, seed: int) -> None:
    overlap = int(part * items)
    names = [f"r{i}" for i in range(raters)]
    made = assessment([table(FIRST, items)], raters=names, overlap=overlap, seed=seed)
    orders = [made.order(name) for name in names]
    assert all(len(set(order)) == len(order) for order in orders)
    shared = set(made.shared())
    assert len(shared) == overlap
    assert all(shared <= set(order) for order in orders)
    rest = [key for order in orders for key in order if key not in shared]
    assert sorted(rest) == sorted(set(made.by_key) - shared)
    sizes = [len(order) for order in orders]
    assert max(sizes) - min(sizes) <= 1
    assert [replace(made).order(name) for name in names] == orders


def test_the_order_is_random_and_each_raters_own() -> None:
    made = assessment([table(FIRST, 40)])
    assert sorted(made.order("anna")) == sorted(made.order("ben"))
    assert made.order("anna") != made.order("ben") != [item.key for item in made.items]
    assert made.order("anna") != replace(made, seed=2).order("anna")


def test_sides_are_turned_about_half_of_the_time_and_stay() -> None:
    made = assessment([table(FIRST, 200), table(SECOND, 200)], task="preference")
    turned = [made.turned("anna", key) for key in made.by_key]
    assert 70 < sum(turned) < 130
    assert turned == [replace(made).turned("anna", key) for key in made.by_key]
    assert turned != [made.turned("ben", key) for key in made.by_key]


def test_a_sheet_names_no_model(tmp_path: Path) -> None:
    office = Office(tmp_path, assessment([table(FIRST, 9), table(SECOND, 9)], task="preference"))
    texts = [each.text for item in office.assessment.items for each in item.answers]
    seen = [office.desks["anna"].sheet(key) for key in office.desks["anna"].keys]
    assert sorted(answer for sheet in seen for answer in sheet.answers) == sorted(texts)
    for model in (FIRST, SECOND):
        assert model.fingerprint not in repr(seen)
    with pytest.raises(DataError, match="not among those of anna"):
        office.desks["anna"].sheet("elsewhere")


def test_what_acts_or_hides_is_shown_in_its_place() -> None:
    hostile = "a\x1b[2Jb\u202ec\u200bd\r\ne\tf\x00"
    assert visible(hostile) == "a␛[2Jb\ufffdc\ufffdd \ne\tf␀"
    assert len(visible(hostile)) == len(hostile)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = assessment([table(FIRST, 3, outcomes=["right", "wrong", "failed"]), table(SECOND, 3)], overlap=2)
    write_assessment(tmp_path / "new", made)
    assert read_assessment(tmp_path / "new") == made
    require_same(tmp_path, read_assessment(tmp_path / "new"), made)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (assessment([table(Answerer("stage-a", "later"), 3)]), "of stage-a with fingerprint aaaa1111, not stage-a"),
        (assessment([table(FIRST, 3), table(SECOND, 3)]), "of 1 models, not 2"),
        (assessment([table(FIRST, 3), table(SECOND, 3)], task="preference"), "task hallucination, not preference"),
        (assessment([table(FIRST, 3)], raters=["anna"]), "its raters are anna, ben"),
        (assessment([table(FIRST, 3)], overlap=1), "its --assess.overlap is None"),
        (assessment([table(FIRST, 3)], seed=2), "its --assess.seed is 1"),
        (assessment([table(FIRST, 4)]), "its 3 items are not the 4"),
    ],
)
def test_another_assessment_is_refused(tmp_path: Path, other, said: str) -> None:
    with pytest.raises(DataError, match="nothing was changed") as raised:
        require_same(tmp_path, assessment([table(FIRST, 3)]), other)
    assert said in str(raised.value)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "task": "hallucination"}', "{"])
def test_a_file_that_is_no_assessment(tmp_path: Path, content: str) -> None:
    (tmp_path / ASSESSMENT).write_text(content)
    with pytest.raises(DataError, match="is no assessment"):
        read_assessment(tmp_path)
    assert (tmp_path / ASSESSMENT).read_text() == content


def test_judgements_without_their_assessment(tmp_path: Path) -> None:
    (tmp_path / JUDGEMENTS).write_text("")
    with pytest.raises(DataError, match="put that file back"):
        read_assessment(tmp_path)


def test_raters_have_names_of_their_own() -> None:
    check_raters(["anna", "ben.k", "Zoë-3"])
    for raters, said in ((["anna", "Anna"], "of their own"), (["a b"], "'a b'"), (["../x"], "'../x'"), ([], "none")):
        with pytest.raises(ConfigError, match=said):
            check_raters(raters)
    with pytest.raises(ConfigError, match="'carl' is no rater of this assessment"):
        assessment([table(FIRST, 3)]).order("carl")
