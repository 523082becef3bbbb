"""A JSON Lines file that only grows: what was appended is on the disk, and a kill tears at most the last line."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_ext.errors import DataError, ResourceError
from openrlhf_ext.track.files import sync_folder


class GrowingLines:
    """One process at a time holds the file. `rows` are those that were there; `torn` says whether a line that a kill
    left without its end was cut off.
    """

    def __init__(self, path: Path) -> None:
        """Raises ResourceError for a file that cannot be opened or that another process holds, DataError with the
        number of a line that is no JSON object.
        """
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            sync_folder(path.parent)
        except OSError as error:
            raise ResourceError(f"{path} cannot be written to ({error.strerror}): give another file.") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ResourceError(
                f"{path} is being written by another process: wait for it, or give another file."
            ) from None
        self._file.seek(0)
        *lines, tail = self._file.read().split(b"\n")
        self.torn = bool(tail)
        self.rows: Sequence[Mapping[str, Any]] = [self._row(line, i) for i, line in enumerate(lines, 1) if line.strip()]
        if tail:
            self._file.truncate(self._file.tell() - len(tail))

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """On return they are on the disk. Raises ResourceError where they cannot be written."""
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        try:
            self._file.write(text.encode("utf-8", "surrogatepass"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ResourceError(f"{self._path} cannot be written to ({error.strerror}): make room for it.") from None

    def close(self) -> None:
        self._file.close()

    def _row(self, line: bytes, number: int) -> Mapping[str, Any]:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(
                f"{self._path}, line {number}: it is no JSON object; mend the line or give another file: nothing was "
                "changed."
            )
        return row
