"""The judgements of an assessment: a file that only grows, and what it comes to.

Each entry is one line, on the disk before anybody is told that it is saved. Several processes may append (the page's
server and a terminal): each takes the file's lock and reads what others wrote before. A line that a kill tore is
completed if it lacks only its end, and cut off else: nobody was told that it was saved.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from openrlhf_ext.assess.assessment import Assessment
from openrlhf_ext.assess.verdicts import Entry, Hallucination, Judgement, Preference, Undo, entry_of, entry_to_json
from openrlhf_ext.errors import DataError, ResourceError
from openrlhf_ext.track.files import sync_folder


class Ledger:
    """What entries come to: the judgements of each rater that were not withdrawn, oldest first."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._live: dict[str, list[Judgement]] = {}

    def apply(self, entry: Entry) -> None:
        """An entry that was seen already changes nothing."""
        if entry.id in self._ids:
            return
        self._ids.add(entry.id)
        live = self._live.setdefault(entry.rater, [])
        if isinstance(entry, Judgement):
            live.append(entry)
        else:
            live[:] = [judgement for judgement in live if judgement.id != entry.of]

    def knows(self, entry_id: str) -> bool:
        return entry_id in self._ids

    def history(self, rater: str) -> Sequence[Judgement]:
        """All that hold or would hold again after an undo."""
        return tuple(self._live.get(rater, ()))

    def current(self, rater: str) -> Mapping[str, Judgement]:
        """What holds of each item: the latest."""
        return {judgement.item: judgement for judgement in self._live.get(rater, ())}


class JudgementLog:
    """`judgements.jsonl` of one assessment, with its ledger. `mended` says what was torn, None if nothing was.

    Raises DataError with the number of a line that is no entry, or belongs to another assessment; ResourceError where
    the file cannot be opened.
    """

    def __init__(self, path: Path, assessment: Assessment) -> None:
        self.ledger = Ledger()
        self.mended: str | None = None
        self._path = path
        self._assessment = assessment
        self._read_to = 0  # bytes
        self._lines = 0
        try:
            self._file = path.open("a+b", buffering=0)
            sync_folder(path.parent)
        except OSError as error:
            raise ResourceError(f"{path} cannot be opened ({error.strerror}): check its rights.") from None
        with self._lock():
            self._catch_up()

    def append(self, entry: Entry) -> None:
        """On return it is on the disk. Raises DataError for an entry that does not fit, ResourceError for a full disk.

        An entry whose id is there already is not written again, so whoever got no answer may send it once more.
        """
        self._require_fitting(entry)
        line = json.dumps(entry_to_json(entry), ensure_ascii=False).encode() + b"\n"
        with self._lock():
            self._catch_up()
            if self.ledger.knows(entry.id):
                return
            try:
                written = self._file.write(line)
                if written != len(line):
                    raise OSError(None, "no room on the disk")
                os.fsync(self._file.fileno())
            except OSError as error:
                raise ResourceError(f"{self._path} cannot be written ({error.strerror}): make room.") from None
            self._catch_up()

    def refresh(self) -> None:
        """Take in what other processes wrote. Raises DataError."""
        if os.fstat(self._file.fileno()).st_size != self._read_to:
            with self._lock():
                self._catch_up()

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        """Take in what is new. Only under the lock: nobody is writing then, so a last line without its end was torn."""
        if torn := self._unread().rpartition(b"\n")[2]:
            self._mend(torn)
        for line in self._unread().split(b"\n")[:-1]:
            self._take(line)

    def _unread(self) -> bytes:
        self._file.seek(self._read_to)
        return self._file.read()

    def _mend(self, torn: bytes) -> None:
        try:
            entry_of(json.loads(torn))
        except ValueError:
            os.ftruncate(self._file.fileno(), os.fstat(self._file.fileno()).st_size - len(torn))
            self.mended = f"{self._path}: the last line was torn ({len(torn)} bytes, never confirmed) and is cut off."
        else:
            self._file.write(b"\n")
            self.mended = f"{self._path}: the last line lacked its end, which is there now."
        os.fsync(self._file.fileno())

    def _take(self, line: bytes) -> None:
        where = f"{self._path}, line {self._lines + 1}"
        try:
            entry = entry_of(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where}: it is no judgement ({error}); mend the line or take it out: nothing was changed."
            ) from None
        try:
            self._require_fitting(entry)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        self.ledger.apply(entry)
        self._lines += 1
        self._read_to += len(line) + 1

    def _require_fitting(self, entry: Entry) -> None:
        """Raises DataError for a rater, an item, a model or a place in the text that the assessment does not have."""
        remedy = "it belongs to another assessment."
        if entry.rater not in self._assessment.raters:
            raise DataError(f"{entry.rater!r} is no rater here: {remedy}")
        if isinstance(entry, Undo):
            return
        item = self._assessment.by_key.get(entry.item)
        if item is None:
            raise DataError(f"item {entry.item} is not judged here: {remedy}")
        models = {answer.model for answer in item.answers}
        if isinstance(entry.verdict, Hallucination):
            if len(item.answers) != 1:
                raise DataError(f"item {entry.item} has two answers to choose from: {remedy}")
            if entry.verdict.spans and entry.verdict.spans[-1][1] > len(item.answers[0].text):
                raise DataError(f"a passage ends behind the answer of item {entry.item}: {remedy}")
        else:
            assert isinstance(entry.verdict, Preference)
            if len(item.answers) != 2 or entry.verdict.first not in models:
                raise DataError(f"item {entry.item} was not compared so: {remedy}")
            if entry.verdict.preferred not in models | {None}:
                raise DataError(f"the model preferred in item {entry.item} is not judged here: {remedy}")
