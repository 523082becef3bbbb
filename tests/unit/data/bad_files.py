"""Files, folders and tokenizers that nothing can be made of, and the sentence that each must be answered with."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Write = Callable[[Path], str]  # what to write into a folder; the data set's name

PAIR = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}


@dataclass(frozen=True)
class Bad:
    name: str
    said: str
    data: Write | list[Any]  # rows of a JSON Lines file, or what writes the data
    of: str = "pairs"
    settings: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    tokenizer_folder: Write | None = None


def pairs(name: str, said: str, data: Write | list[Any], **settings: Any) -> Bad:
    return Bad(name, said, data, settings=settings)


def of_bytes(name: str, content: bytes) -> Write:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return write


def of_table(columns: dict[str, Any], cut: int | None = None, name: str = "rows.parquet") -> Write:
    def write(folder: Path) -> str:
        path = folder / name
        table = pa.table(columns)
        if name.endswith(".parquet"):
            pq.write_table(table, path)
        else:
            with pa.ipc.new_file(path, table.schema) as file:
                file.write_table(table)
        path.write_bytes(path.read_bytes()[:cut])
        return str(path)

    return write


def near(folder: Path) -> str:
    (folder / "train.jsonl").write_text("{}")
    return str(folder / "trian.jsonl")


def folder_of(name: str, content: str) -> Write:
    def write(folder: Path) -> str:
        (folder / name).write_text(content)
        return str(folder)

    return write


GOOD = json.dumps(PAIR).encode() + b"\n"
NOT_TEXT = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb"))

FILES = [
    pairs("a mistyped name", r"trian.jsonl does not exist: did you mean .*train.jsonl\?", near),
    pairs("no such folder", "nor does its folder .*check the path", lambda folder: str(folder / "no" / "d.jsonl")),
    pairs("no data set at all", "no data set is named: give a file", lambda folder: " , "),
    pairs(
        "an ending that no reader knows", "does not end like a data file: known endings are", of_bytes("d.txt", GOOD)
    ),
    pairs("a folder without data", "cannot be loaded by `datasets` .*give a data file", lambda folder: str(folder)),
    pairs("an empty file", "d.jsonl has no rows: give a data set with at least one", of_bytes("d.jsonl", b"")),
    pairs("blank lines only", "d.jsonl has no rows", of_bytes("d.jsonl", b"\n \n\n")),
    pairs("a split of a file", "one file, with the split 'train' only", of_bytes("d.jsonl", GOOD), split="test"),
    pairs(
        "a byte that is not UTF-8",
        "d.jsonl, line 2: byte 0xff is not UTF-8; save",
        of_bytes("d.jsonl", GOOD + b'{"a": "\xff"}'),
    ),
    pairs("UTF-16", "d.jsonl, line 1: byte 0xff is not UTF-8", of_bytes("d.jsonl", GOOD.decode().encode("utf-16"))),
    pairs(
        "a line that is no JSON",
        "d.jsonl, line 2: not valid JSON .*one JSON object",
        of_bytes("d.jsonl", GOOD + b"{'a': 1}"),
    ),
    pairs("a line cut off", "d.jsonl, line 2: not valid JSON", of_bytes("d.jsonl", GOOD + GOOD[:30])),
    pairs("a line that is a number", "d.jsonl, line 2: a JSON int where an object", of_bytes("d.jsonl", GOOD + b"3")),
    pairs("an array of texts", "element 1 of the array is a JSON str", of_bytes("d.json", b'[{"a": 1}, "b"]')),
    pairs("an array without its end", "d.json, line 1: not valid JSON", of_bytes("d.json", b'[{"a": 1},')),
    pairs(
        "nesting without end", "line 1: JSON that is nested too deeply", of_bytes("d.jsonl", b'{"a":' + b"[" * 100_000)
    ),
    pairs(
        "a number without end",
        "line 1: JSON .*number of thousands of digits; mend",
        of_bytes("d.jsonl", b'{"a":' + b"1" * 5000 + b"}"),
    ),
    pairs(
        "half a gzip file",
        "not a whole gzip file .*download it again",
        of_bytes("d.jsonl.gz", gzip.compress(GOOD * 99)[:60]),
    ),
    pairs("no gzip at all", "not a whole gzip file .*drop the .gz ending", of_bytes("d.jsonl.gz", GOOD)),
    pairs(
        "half a parquet file",
        "not a whole parquet file .*copy or download",
        of_table(dict.fromkeys(PAIR, ["a"] * 99), 300),
    ),
    pairs("an empty parquet file", "not a whole parquet file", of_bytes("d.parquet", b"")),
    pairs("parquet without rows", "rows.parquet has no rows", of_table(dict.fromkeys(PAIR, pa.array([], pa.string())))),
    pairs(
        "a broken text in parquet",
        "holds a text with the byte 0xff, which is not UTF-8; write",
        of_table(dict.fromkeys(PAIR, NOT_TEXT)),
    ),
    pairs("half an arrow file", "not a whole arrow file", of_table(dict.fromkeys(PAIR, ["a"] * 99), 300, "d.arrow")),
    pairs(
        "CSV with a stray comma",
        "line 3: 3 cells where the header names 2 columns; quote",
        of_bytes("d.csv", b"chosen,rejected\na,b\na,b,c\n"),
    ),
    pairs("CSV with an open quote", "d.csv, line 2: not valid CSV", of_bytes("d.csv", b'chosen,rejected\n"a,b\n')),
    pairs(
        "CSV with a column twice",
        "names the column 'chosen' more than once",
        of_bytes("d.csv", b"chosen,chosen\na,b\n"),
    ),
    pairs("CSV with a header only", "d.csv has no rows", of_bytes("d.csv", b"chosen,rejected\n")),
    pairs(
        "CSV in Latin-1",
        "d.csv, line 2: byte 0xe9 is not UTF-8",
        of_bytes("d.csv", "chosen,rejected\né,b\n".encode("latin-1")),
    ),
]

TOKENIZERS = [
    Bad(
        "a tokenizer without EOS",
        "has no EOS token, so no answer could ever end: set eos_token",
        [PAIR],
        tokenizer={"eos_token": None},
    ),
    Bad(
        "a folder without a tokenizer",
        "no tokenizer can be loaded from .*tokenizer.json",
        [PAIR],
        tokenizer_folder=folder_of("x", ""),
    ),
    Bad(
        "half a tokenizer file",
        "no tokenizer can be loaded from",
        [PAIR],
        tokenizer_folder=folder_of("tokenizer.json", '{"version": "1.0", '),
    ),
    Bad(
        "no folder",
        "is not a folder: give a model folder with a tokenizer",
        [PAIR],
        tokenizer_folder=lambda folder: str(folder / "none"),
    ),
]
