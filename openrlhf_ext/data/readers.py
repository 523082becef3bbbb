"""Local data files as lists of plain dicts: JSONL and JSON (gzip too), CSV, parquet, arrow.

Every reader takes `limit` (stop after so many rows) and raises DataError, one sentence, with
the file and, where the format has lines, the line number.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from openrlhf_ext.errors import DataError

Values = dict[str, Any]


def open_bytes(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def read_json(path: Path, limit: int | None = None) -> list[Values]:
    """A JSON Lines file, or a JSON file that is one array of objects."""
    with open_bytes(path) as file:
        try:
            first = next((line for line in file if line.strip()), b"")
            file.seek(0)
            if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
                return _read_array(path, file.read())[:limit]
            return list(_read_lines(path, file, limit))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"{path} is not a whole gzip file ({error}): copy or download it again, "
                "or drop the .gz ending if it is not compressed."
            ) from None


def _read_lines(path: Path, file: IO[bytes], limit: int | None) -> Iterator[Values]:
    rows = 0
    for number, line in enumerate(file, start=1):
        if limit is not None and rows == limit:
            return
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number, error) from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno}); "
                "each line must be one JSON object."
            ) from None
        except (RecursionError, ValueError):
            raise DataError(
                f"{path}, line {number}: JSON that is nested too deeply or holds a number of thousands of digits; "
                "mend the line or leave it out."
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: a JSON {type(row).__name__} where an object with named columns was expected."
            )
        rows += 1
        yield row


def _read_array(path: Path, data: bytes) -> list[Values]:
    text = _decode(path, data)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg} at column {error.colno}).") from None
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}: element {index} of the array is a JSON {type(row).__name__}, "
                "where an object with named columns was expected."
            )
    return rows


def read_csv(path: Path, limit: int | None = None, *, typed: bool = True) -> list[Values]:
    """A CSV file with a header line.

    A column whose filled cells are all integers (or all numbers) becomes numbers, with None for its
    empty cells; any other column stays text, empty cells included. Not `typed`, all are text.
    """
    with open_bytes(path) as file:
        text = _decode(path, file.read())
    csv.field_size_limit(2**31 - 1)  # the standard limit of 128 KiB is less than a long note
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    header: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = cells
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells where the header names {len(header)} columns; "
                    "quote the cells that hold commas or line ends."
                )
            if limit is not None and len(rows) == limit:
                break
            rows.append(cells)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from None
    if header is None:
        return []
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path} names the column {repeated[0]!r} more than once: give each column its own name.")
    columns = [_typed(list(column)) if typed else column for column in zip(*rows, strict=True)]
    return [dict(zip(header, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _typed(cells: list[str]) -> list[Any]:
    filled = [cell for cell in cells if cell]
    for convert in (int, float):
        try:
            if not filled:
                return cells
            for cell in filled:
                # "007" is a name and "1_000" is Python, neither is a number in a data file
                if (cell[:1] == "0" and cell[1:2].isdigit()) or "_" in cell:
                    return cells
                convert(cell)
        except ValueError:
            continue
        return [convert(cell) if cell else None for cell in cells]
    return cells


def read_parquet(path: Path, limit: int | None = None) -> list[Values]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if limit is None:
                return file.read().to_pylist()
            rows: list[Values] = []
            for batch in file.iter_batches(batch_size=min(max(limit, 1), 65536)):
                rows += batch.to_pylist()
                if len(rows) >= limit:
                    break
            return rows[:limit]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _not_whole(path, "parquet", error) from None


def read_arrow(path: Path, limit: int | None = None) -> list[Values]:
    """An Arrow IPC file or stream (`datasets` writes streams)."""
    import pyarrow as pa

    data = pa.memory_map(str(path))
    try:
        try:
            table = pa.ipc.open_stream(data).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(data).read_all()
        return table.slice(0, limit).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _not_whole(path, "arrow", error) from None


READERS: dict[str, Callable[[Path, int | None], list[Values]]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".jsonl.gz": read_json,
    ".json.gz": read_json,
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


def data_suffix(name: str) -> str | None:
    """The ending by which a file is read, or None if it is not a data file's."""
    lowered = name.lower()
    return max((suffix for suffix in READERS if lowered.endswith(suffix)), key=len, default=None)


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, data.count(b"\n", 0, error.start) + 1, error) from None


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    return DataError(f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8.")


def _not_whole(path: Path, kind: str, error: Exception) -> DataError:
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return DataError(f"{path} holds a text with the byte 0x{byte:02x}, which is not UTF-8; write it anew as UTF-8.")
    reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    return DataError(f"{path} is not a whole {kind} file ({reason}): copy or download it again.")
