"""How many rows a data set has, and some of them, without reading all of it: for plans, which answer in a second.

What `data.tables.load_rows` would read, looked at from outside: files, folders written by `save_to_disk`, folders of
data files, and hub names that `datasets` has in its cache.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from openrlhf_ext.data.readers import READERS, Values, data_suffix
from openrlhf_ext.errors import DataError

SAMPLE = 256
"""Rows of a source that are looked at, evenly spread over it."""
WHOLE = 4 << 20
"""Bytes of a file that is read whole."""
COUNTED = 1 << 30
"""Bytes of text whose rows are counted; those of a larger file are estimated from its size."""
BLOCKS, BLOCK = 64, 1 << 18
"""Parts of such a file that are read, and the bytes of each."""
HEAD = 16 << 20
"""Bytes at the beginning of a compressed file or a JSON array that are read where the whole would take too long."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one source shows: `rows` in all, exactly or as its size suggests, and some of them."""

    rows: int
    sample: list[Values]
    exact: bool = True


def look_at(spec: str, split: str, limit: int) -> Look | None:
    """At a source as a `--data` flag names it, of which at most `limit` rows are used; None where it cannot be read."""
    name = spec.partition("@")[0].strip()
    path = Path(name).expanduser()
    try:
        if path.is_file():
            return _of_file(path, limit) if split == "train" and data_suffix(name) else None
        files = _files_of_folder(path, split) if path.is_dir() else _cached(name, split)
        return _joined([_of_file(file, limit) for file in files], limit) if files else None
    except (DataError, OSError, ValueError, EOFError, KeyError, csv.Error):
        return None


def _joined(looks: Sequence[Look], limit: int) -> Look:
    """Files of one source, one after the other; a file's part in the sample is its part of the rows."""
    rows = sum(look.rows for look in looks)
    share = [max(round(SAMPLE * look.rows / max(rows, 1)), 1) for look in looks]
    sample = [row for look, part in zip(looks, share, strict=True) for row in _evenly(look.sample, part)]
    return Look(min(rows, limit), sample, all(look.exact for look in looks))


def _of_file(path: Path, limit: int) -> Look:
    suffix = data_suffix(path.name) or ".arrow"
    if suffix in (".parquet", ".arrow"):
        look = _of_parquet(path) if suffix == ".parquet" else _of_arrow(path)
    elif path.stat().st_size <= (WHOLE // 8 if suffix.endswith(".gz") else WHOLE) or limit <= SAMPLE:
        rows = READERS[suffix](path, limit)
        look = Look(len(rows), rows)
    elif suffix == ".csv":
        look = _of_csv(path)
    elif suffix.endswith(".gz"):
        look = _of_compressed(path, suffix)
    else:
        look = _of_json(path)
    return Look(min(look.rows, limit), look.sample, look.exact or look.rows > limit)


def _of_json(path: Path) -> Look:
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return _of_array(path, size)
        file.seek(0)
        if size <= COUNTED:
            rows, lines = _counted(file)
            return Look(rows, [_row(line) for line in lines])
        lines = [line for place in range(BLOCKS) for line in _block(file, place * size // BLOCKS)]
    rows = round(size * len(lines) / sum(map(len, lines)))
    return Look(rows, [_row(line) for line in _evenly(lines, SAMPLE)], exact=False)


def _counted(file: IO[bytes]) -> tuple[int, list[bytes]]:
    """How many lines hold something, and some of them: every so many, twice as many whenever there are enough."""
    count, every, kept = 0, 1, []
    for line in file:
        if line.isspace():
            continue
        if count % every == 0:
            kept.append(line)
            if len(kept) == 2 * SAMPLE:
                kept, every = kept[::2], 2 * every
        count += 1
    return count, kept


def _block(file: IO[bytes], start: int) -> list[bytes]:
    """The whole lines of a part of a file."""
    file.seek(start)
    if start:
        file.readline()  # the rest of a line
    lines = file.read(BLOCK).split(b"\n")
    return [line + b"\n" for line in (lines[:-1] or [lines[0] + file.readline()]) if line.strip()]


def _of_array(path: Path, size: int) -> Look:
    if size <= HEAD:
        rows = READERS[".json"](path, None)
        return Look(len(rows), list(_evenly(rows, SAMPLE)))
    with path.open("rb") as file:
        head = file.read(HEAD).decode("utf-8-sig", "ignore")
    rows, end = [], head.index("[") + 1
    decoder = json.JSONDecoder()
    while True:
        while head[end : end + 1] in tuple(", \r\n\t"):
            end += 1
        try:
            value, end = decoder.raw_decode(head, end)
        except ValueError:
            break
        rows.append(value)
    measured = len(head[:end].encode())
    return Look(round(size * len(rows) / measured), list(_evenly(rows, SAMPLE)), exact=False)


def _of_csv(path: Path) -> Look:
    size = path.stat().st_size
    with path.open("rb") as file:
        whole = size <= HEAD
        sample, measured, rows = _csv_rows(file.read(HEAD), whole)
    return Look(rows if whole else round(size * rows / max(measured, 1)), sample, whole)


def _csv_rows(data: bytes, whole: bool) -> tuple[list[Values], int, int]:
    """Some rows of a CSV file's beginning, its bytes, and how many rows it holds."""
    csv.field_size_limit(2**31 - 1)
    rows = [cells for cells in csv.reader(io.StringIO(data.decode("utf-8-sig", "ignore"), newline="")) if cells]
    header, rows = rows[0], rows[1:] if whole else rows[1:-1]  # the last one may be torn
    return [dict(zip(header, cells)) for cells in _evenly(rows, SAMPLE)], len(data), len(rows)


def _of_compressed(path: Path, suffix: str) -> Look:
    """The rows of as much as is read in a moment, and by the compressed bytes that took, of the rest."""
    size = path.stat().st_size
    with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as file:
        data = file.read(HEAD)
        whole, used = not file.read(1), packed.tell()
    if suffix == ".csv.gz":
        sample, _, rows = _csv_rows(data, whole)
    else:
        lines = [line for line in data.splitlines() if line.strip()]
        lines = lines if whole else lines[:-1]
        sample, rows = [_row(line) for line in _evenly(lines, SAMPLE)], len(lines)
    return Look(rows if whole else round(rows * size / used), sample, whole)


def _of_parquet(path: Path) -> Look:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        groups = file.metadata.num_row_groups
        chosen = sorted({group * groups // 8 for group in range(8)}) if file.metadata.num_rows else []
        sample: list[Values] = []
        for group in chosen:
            batch = next(file.iter_batches(batch_size=4096, row_groups=[group]))
            places = _evenly(range(batch.num_rows), SAMPLE // len(chosen))
            sample += [row for place in places for row in batch.slice(place, 1).to_pylist()]
        return Look(file.metadata.num_rows, sample)


def _of_arrow(path: Path) -> Look:
    import pyarrow as pa

    data = pa.memory_map(str(path))
    try:
        table = pa.ipc.open_stream(data).read_all()
    except pa.ArrowInvalid:
        table = pa.ipc.open_file(data).read_all()
    rows = table.num_rows
    sample = [row for place in _evenly(range(rows), SAMPLE) for row in table.slice(place, 1).to_pylist()]
    return Look(rows, sample)


def _files_of_folder(folder: Path, split: str) -> list[Path]:
    """The files of a split: by the record of `save_to_disk`, or by their names, as `datasets` takes them."""
    if (folder / "dataset_dict.json").is_file():
        folder = folder / split
    state = folder / "state.json"
    if state.is_file():
        return [folder / file["filename"] for file in json.loads(state.read_text())["_data_files"]]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and data_suffix(path.name))
    of_split = {name: [path for path in files if name in str(path.relative_to(folder)).lower()] for name in _SPLITS}
    if any(of_split.values()):
        return [path for name in _SPLITS if _SPLITS[name] == split for path in of_split[name]]
    return files if split == "train" else []


_SPLITS = {"train": "train", "test": "test", "valid": "validation", "dev": "validation", "eval": "test"}
"""Words of a file's name, and the split that `datasets` takes it for."""


def _cached(name: str, split: str) -> list[Path]:
    """What `datasets` keeps of a hub data set that was loaded before: the files of its newest version."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser()
    kept = sorted((cache / name.replace("/", "___")).glob("*/*/*/dataset_info.json"), key=lambda p: p.stat().st_mtime)
    return sorted(kept[-1].parent.glob(f"*-{split}*.arrow")) if kept else []


def _row(line: bytes) -> Values:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("a row is an object")
    return row


def _evenly(rows: Sequence[Any], most: int) -> Iterator[Any]:
    step = max(len(rows) / most, 1.0) if rows else 1.0
    return (rows[int(place * step)] for place in range(min(most, len(rows))))
