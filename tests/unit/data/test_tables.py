"""Data files and mixtures: what is read, and the one sentence for what cannot be."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.data.readers import read_csv, read_json
from openrlhf_ext.data.tables import content_id, load_rows, parse_probs, require_columns, source_names
from openrlhf_ext.errors import ConfigError, DataError

ROWS = [{"input": f"q{i}", "n": i, "tags": ["a", str(i)]} for i in range(5)]


def write(path, rows=ROWS):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif path.name.endswith(".array.json"):
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.jsonl.gz", "d.array.json", "d.parquet", "d.arrow"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    path = write(tmp_path / name)
    assert [dict(row.values) for row in load_rows(str(path))] == ROWS
    assert [dict(row.values) for row in load_rows(str(path), max_samples=2)] == ROWS[:2]


@pytest.mark.parametrize("as_dict", [False, True])
def test_folder_of_save_to_disk(tmp_path, as_dict):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    (datasets.DatasetDict({"train": data, "test": data.select([0])}) if as_dict else data).save_to_disk(tmp_path / "d")
    assert [dict(row.values) for row in load_rows(str(tmp_path / "d"), max_samples=4)] == ROWS[:4]
    if as_dict:
        assert len(load_rows(str(tmp_path / "d"), split="test")) == 1
        with pytest.raises(DataError, match="no split 'dev'; the splits there are: train, test"):
            load_rows(str(tmp_path / "d"), split="dev")


def test_byte_order_mark_and_blank_lines(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n   \n{"a": 2}')
    assert [row["a"] for row in load_rows(str(path))] == [1, 2]


def test_csv_types_and_quoting(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text('text,flag,part,code,big\n"a, ""b""\nc",1,0.5,007,\n,,2,8,\n')
    rows = [dict(row.values) for row in load_rows(str(path))]
    assert rows == [
        {"text": 'a, "b"\nc', "flag": 1, "part": 0.5, "code": "007", "big": ""},
        {"text": "", "flag": None, "part": 2.0, "code": "8", "big": ""},
    ]


@given(st.lists(st.tuples(st.text(), st.text(min_size=1)), min_size=1))
def test_csv_keeps_any_text(tmp_path_factory, cells):
    import csv

    # letters keep the columns text; the reader of the standard library turns no lone \r or NUL round
    cells = [tuple("x" + c.replace("\x00", "").encode("utf-8", "ignore").decode() for c in row) for row in cells]
    path = tmp_path_factory.mktemp("csv") / "d.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("a", "b"), *cells])
    assert [tuple(row.values()) for row in read_csv(path)] == cells


@given(st.lists(st.dictionaries(st.text(), st.one_of(st.none(), st.integers(), st.text())), min_size=1))
def test_jsonl_keeps_any_row(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("jsonl") / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_json(path) == rows


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.jsonl", b'{"a": 1}\n\n{"a": }\n', "d.jsonl, line 3: not valid JSON"),
        ("d.jsonl", b'{"a": 1}\n[1]\n', "line 2: a JSON list"),
        ("d.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "line 2: byte 0xff is not UTF-8"),
        ("d.jsonl", b"\n", "has no rows"),
        ("d.json", b'[{"a": 1},\n{"a": 2}\n', "line 3: not valid JSON"),
        ("d.json", b"[1]", "element 0 of the array"),
        ("d.csv", b"a,b\n1,2\n3\n", "line 3: 1 cells where the header names 2"),
        ("d.csv", b'a,b\n1,"2\n', "not valid CSV"),
        ("d.csv", b"a,b\n1,\xe9\n", "line 2: byte 0xe9 is not UTF-8"),
        ("d.csv", b"a,a\n1,2\n", "names the column 'a' more than once"),
        ("d.csv", b"a,b\n", "has no rows"),
        ("d.csv", b"", "has no rows"),
        ("d.jsonl.gz", b"no gzip", "not a whole gzip file"),
        ("d.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-9], "not a whole gzip file"),
        ("d.parquet", b"PAR1 and then nothing", "not a whole parquet file"),
        ("d.arrow", b"nothing", "not a whole arrow file"),
        ("d.txt", b"a\n", "known endings are .jsonl, .json"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_rows(str(path))
    assert said in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated_parquet(tmp_path, keep):
    data = write(tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match="not a whole parquet file"):
        load_rows(str(tmp_path / "d.parquet"))


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl\?$"):
        load_rows(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match="nor does its folder"):
        load_rows(str(tmp_path / "no" / "train.jsonl"))
    with pytest.raises(DataError, match="no data set is named"):
        load_rows(" ,")
    with pytest.raises(DataError, match="one file, with the split 'train' only"):
        load_rows(str(tmp_path / "train.jsonl"), split="test")


def test_unknown_hub_name_fails_within_seconds(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    api = huggingface_hub.HfApi("http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    with pytest.raises(DataError, match=r"cannot be asked for a data set of that name \(ConnectError\)"):
        load_rows("nobody/nothing")


def test_require_columns_names_those_there(tmp_path):
    rows = load_rows(str(write(tmp_path / "d.jsonl")))
    require_columns(rows, {"input": "--data.input_key"})
    with pytest.raises(DataError, match=r"row 1 of d has no column 'question' \(--data.input_key\).*: input, n, tags"):
        require_columns(rows, {"question": "--data.input_key"})


def test_concatenation_and_source_names(tmp_path):
    (tmp_path / "x").mkdir()
    a, b, c = write(tmp_path / "a.jsonl"), write(tmp_path / "b.v2.jsonl"), write(tmp_path / "x" / "a.jsonl")
    rows = load_rows(f"{a}, {b},{c}", max_samples=4)
    assert len(rows) == 4  # as in OpenRLHF: of each, and of all
    names = source_names([str(a), str(b), str(c), "org/name@part"])
    assert names == [f"{tmp_path.name}/a", "b.v2", "x/a", "name"]


def test_mixture_is_in_openrlhfs_order(tmp_path):
    datasets = pytest.importorskip("datasets")
    sources = {name: [{"input": f"{name}{i}"} for i in range(n)] for name, n in (("a", 20), ("b", 7))}
    paths = ",".join(str(write(tmp_path / f"{name}.jsonl", rows)) for name, rows in sources.items())
    got = [row["input"] for row in load_rows(paths, probs=(0.4, 0.6), seed=3)]
    theirs = datasets.interleave_datasets(
        [datasets.Dataset.from_list(rows) for rows in sources.values()],
        probabilities=[0.4, 0.6],
        seed=3,
        stopping_strategy="all_exhausted",
    )
    assert got == theirs["input"][:]
    assert {x for rows in sources.values() for x in (r["input"] for r in rows)} == set(got)
    assert got != [row["input"] for row in load_rows(paths, probs=(0.4, 0.6), seed=4)]


@pytest.mark.parametrize(
    ("probs", "said"), [((1.0,), "1 probabilities for 2"), ((0.5, 0.6), "sum to 1"), ((0.0, 1.0), "positive")]
)
def test_probabilities_that_do_not_fit(tmp_path, probs, said):
    a = write(tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=said):
        load_rows(f"{a},{a}", probs=probs)


def test_parse_probs():
    assert parse_probs("0.3, 0.7") == (0.3, 0.7)
    assert parse_probs(None) is None
    with pytest.raises(ConfigError, match="joined by commas"):
        parse_probs("a")


def test_content_ids_tell_duplicates_apart():
    from collections import Counter

    seen = Counter()
    first, again, other = content_id("x", seen), content_id("x", seen), content_id("y", seen)
    assert len({first, again, other}) == 3
    assert content_id("x", Counter()) == first


def test_reading_files_needs_neither_torch_nor_datasets(tmp_path):
    path = write(tmp_path / "d.parquet")
    code = (
        "import sys\n"
        "from openrlhf_ext.data.tables import load_rows\n"
        f"assert len(load_rows({str(path)!r})) == 5\n"
        "heavy = {'torch', 'datasets', 'transformers', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
