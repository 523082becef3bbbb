"""A file of JSON lines that grows: what a kill tears, two processes, and lines that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from openrlhf_ext.errors import DataError, ResourceError
from openrlhf_ext.track.lines import GrowingLines


def opened(path: Path) -> GrowingLines:
    return GrowingLines(path)


def test_what_was_appended_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    lines = opened(path)
    assert lines.rows == [] and not lines.torn
    lines.append([{"a": "ü"}, {"a": 2}])
    lines.close()
    again = opened(path)
    assert again.rows == [{"a": "ü"}, {"a": 2}]
    again.append([{"a": 3}])
    again.close()
    assert path.read_text(encoding="utf-8") == '{"a": "ü"}\n{"a": 2}\n{"a": 3}\n'


def test_a_torn_line_is_cut_off_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    lines = opened(path)
    assert lines.rows == [{"a": 1}] and lines.torn
    lines.append([{"a": 2}])
    lines.close()
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'


def test_one_process_at_a_time(tmp_path: Path) -> None:
    lines = opened(tmp_path / "rows.jsonl")
    with pytest.raises(ResourceError, match="is being written by another process"):
        opened(tmp_path / "rows.jsonl")
    lines.close()
    opened(tmp_path / "rows.jsonl").close()


def test_what_is_no_such_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nwords\n{"a": ')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: it is no JSON object"):
        opened(path)
    assert path.read_text() == '{"a": 1}\nwords\n{"a": '
    with pytest.raises(ResourceError, match="cannot be written to"):
        opened(tmp_path)
