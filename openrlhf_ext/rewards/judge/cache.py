"""Replies of language models on disk, by the content of what was asked."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from openrlhf_ext.errors import ResourceError
from openrlhf_ext.rewards.judge.types import Question, Reply

logger = logging.getLogger(__name__)

FILE = "verdicts.sqlite"
FORM = 1  # of what is stored; another form is another key
BUSY_S = 30.0
KEYS_A_QUERY = 500
TABLE = (
    "CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, text TEXT NOT NULL, finish_reason TEXT NOT NULL, "
    "prompt_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL) WITHOUT ROWID"
)


def cache_key(model: str, question: Question) -> bytes:
    """Of everything that an answer depends on: model, messages (so the rubric and the row), schema, sampling."""
    schema = None if question.schema is None else dict(question.schema)
    content = [
        FORM, model, [dict(message) for message in question.messages], schema, question.max_new_tokens,
        question.temperature, question.seed,
    ]  # fmt: skip
    # The schema's keys keep their order: decoding follows it.
    text = json.dumps(content, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=20).digest()


class VerdictCache:
    """One SQLite file in a folder; threads and processes may share it.

    A file that is not such a database is set aside under another name and a new one begun, with a warning. A write
    or read that fails later (a full disk) is a warning, counted in `errors`, and the judge is asked instead.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises ResourceError for a folder that cannot be made or written to."""
        self.path = Path(folder).expanduser() / FILE
        self.errors = 0
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, sqlite3.Error) as error:
            raise ResourceError(
                f"the judge's cache {self.path} cannot be used ({error}): give another folder, or turn it off."
            ) from None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Reply]:
        """The replies that are there, by key."""
        found: dict[bytes, Reply] = {}
        with self._lock:
            for start in range(0, len(keys), KEYS_A_QUERY):
                part = list(keys[start : start + KEYS_A_QUERY])
                marks = ",".join("?" * len(part))
                rows = self._run(f"SELECT * FROM replies WHERE key IN ({marks})", [part])
                found.update({row[0]: Reply(*row[1:]) for row in rows})
        return found

    def put(self, replies: Mapping[bytes, Reply]) -> None:
        """Keep replies; one that is there already stays."""
        rows = [(k, r.text, r.finish_reason, r.prompt_tokens, r.answer_tokens) for k, r in replies.items()]
        if rows:
            with self._lock:
                self._run("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", rows)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _run(self, statement: str, rows: Sequence[Sequence[object]]) -> list[tuple]:
        try:
            if self._connection is None:
                self._open()
            assert self._connection is not None
            with self._connection:
                if statement.startswith("SELECT"):
                    return self._connection.execute(statement, rows[0]).fetchall()
                self._connection.executemany(statement, rows)
        except sqlite3.OperationalError as error:  # busy, full, gone: the next call may do
            self._count(error)
        except sqlite3.DatabaseError as error:
            self._count(error)
            try:
                self._set_aside(error)
            except (OSError, sqlite3.Error) as second:
                self._count(second)
        return []

    def _count(self, error: Exception) -> None:
        self.errors += 1
        if self.errors == 1:
            logger.warning("The judge's cache %s failed (%s); the judge is asked instead.", self.path, error)

    def _open(self) -> None:
        try:
            self._connect()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            self._set_aside(error)

    def _connect(self) -> None:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, check_same_thread=False)
        try:
            with connection:
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(TABLE)
                # Reads every page's head: a file cut short or written over is found now.
                [(verdict,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _set_aside(self, error: Exception) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.broken-{number}")).exists():
            number += 1
        os.replace(self.path, aside)
        journal = self.path.with_name(self.path.name + "-journal")
        if journal.exists():
            os.replace(journal, aside.with_name(aside.name + "-journal"))
        logger.warning(
            "The judge's cache %s is not a readable database (%s); it is kept as %s, and a new one is begun.",
            self.path, error, aside.name,
        )  # fmt: skip
        self._connect()
