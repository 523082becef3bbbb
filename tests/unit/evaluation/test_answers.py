"""Tables of answers: what is written is read, keys are content, and other files are refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.answers import ANSWERS, Answerer, AnswerRow, content_keys, read_answers, write_answers

MODEL = Answerer("outputs/a", "f00d")
ROW = AnswerRow("k", 0, "set", "What?", "That.", "right", reference="That.", score=1.0, reference_logprob=-2.5,
                reference_tokens=4, tokens=3,
                notes={"judge": "yes"}, columns={"subject": ["1.4", "2"], "n": 3, "none": None})  # fmt: skip
BARE = AnswerRow("k", 1, "set", "What?", "", "ungraded")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_answers(tmp_path, MODEL, [ROW, BARE])
    assert read_answers(tmp_path) == (MODEL, [ROW, BARE])
    assert read_answers(tmp_path / ANSWERS) == (MODEL, [ROW, BARE])


def test_a_key_is_the_content() -> None:
    rows = [("a", "b", None), ("a", None, "b"), ("a", "b", None), ("c", "b", None)]
    keys = content_keys(rows)
    assert len(set(keys)) == 4
    assert set(content_keys(rows[::-1])) == set(keys)


def test_a_column_that_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no JSON value"):
        write_answers(tmp_path, MODEL, [AnswerRow("k", 0, "s", "p", "a", "right", columns={"x": object()})])
    assert not (tmp_path / ANSWERS).exists()


@pytest.mark.parametrize("content", [None, b"not parquet", "table"])
def test_other_files_are_refused(tmp_path: Path, content: bytes | str | None) -> None:
    if isinstance(content, bytes):
        (tmp_path / ANSWERS).write_bytes(content)
    elif content == "table":
        pq.write_table(pa.table({"key": ["a"]}), tmp_path / ANSWERS)
    with pytest.raises(DataError, match=r"`openrlhf-ext eval` wrote|eval wrote"):
        read_answers(tmp_path)
