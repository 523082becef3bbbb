"""The trainer's side of `child`: one process per reward file, restarted when it died or hung."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, overload

import openrlhf_ext
from openrlhf_ext.errors import RewardError, UserError
from openrlhf_ext.rewards.answer import EXPECTED_SIGNATURE, Answer, AnswerError
from openrlhf_ext.types import Prompt, Report, Rollout

AT_ONCE_S = 0.005
"""Questions that come within it of each other are asked together."""


class AsksJudge(Protocol):
    """The run's judge, as reward files are given it."""

    def ask(
        self,
        items: Sequence[Any],
        schema: Mapping[str, Any] | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
    ) -> list[Any]:
        """An answer for each text or conversation: its text, or parsed JSON with a schema; None where there is none.

        Raises ValueError for a question that is none.
        """
        ...

    def take_report(self) -> Report: ...


class Decoded(Sequence[str]):
    """`count` texts that are decoded when somebody reads one: files and servers do, rules, judges and students look at
    the answers alone. A million tokens take the driver about half a second (docs/benchmarks.md).
    """

    def __init__(self, count: int, decode: Callable[[], list[str]]) -> None:
        self._count = count
        self._decode = decode
        self._texts: list[str] | None = None
        self._lock = threading.Lock()  # several sources read at once

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        with self._lock:
            if self._texts is None:
                self._texts = self._decode()
        return self._texts[index]


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """One entry per sample in every list. `columns` are the other columns of the samples' rows.

    `samples` are what the texts are of; a request over HTTP and a trial call have none. `trial` is the call that is
    made before any model is there.
    """

    queries: Sequence[str]
    prompts: list[str]
    labels: list[Any]
    columns: Mapping[str, Sequence[Any]]
    samples: Sequence[tuple[Prompt, Rollout]] = ()
    trial: bool = False

    @property
    def texts(self) -> dict[str, Any]:
        """What a reward function is called with."""
        return {
            "queries": self.queries[:], "prompts": self.prompts, "labels": self.labels, "columns": dict(self.columns)
        }  # fmt: skip

    def part(self, start: int, stop: int) -> RewardBatch:
        columns = {name: column[start:stop] for name, column in self.columns.items()}
        part = slice(start, stop)
        return RewardBatch(
            self.queries[part], self.prompts[part], self.labels[part], columns, self.samples[part], self.trial
        )


class AsksLater(Exception):
    """A trial call came as far as a question to the judge, which is started later."""


class PluginSource:
    """A Python file with OpenRLHF's `reward_func`, run in a process of its own.

    What it asks the judge is asked here, and its time limit does not run meanwhile.
    """

    def __init__(self, name: str, path: Path, *, load_timeout_s: float, judge: AsksJudge | None = None) -> None:
        self.name = name
        self.origin = str(path)
        self._path = str(path)
        self._load_timeout_s = load_timeout_s
        self._judge = judge
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self.signature = ""

    def start(self) -> None:
        """Start the process and import the file, unless it runs already.

        Raises RewardError: the file cannot be imported, has no `reward_func`, or one that does not take
        queries, prompts and labels.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        ours, theirs = Pipe()
        root = str(Path(openrlhf_ext.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._connection = ours
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.child", str(theirs.fileno()), self._path],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # a group of its own, which is killed whole
        )
        theirs.close()
        try:
            reply = self._reply(self._load_timeout_s)
        except AnswerError as error:
            raise RewardError(f"reward file {self.origin}: its import failed ({error.detail}).") from None
        if "failure" in reply:
            self.close()
            found = f"; found {reply['signature']}" if "signature" in reply else ""
            raise RewardError(f"reward file {self.origin}: {reply['detail']}; expected {EXPECTED_SIGNATURE}{found}.")
        self.signature = reply["signature"]

    def ask(self, batch: RewardBatch, timeout_s: float) -> Answer:
        """One call for the whole batch; AnswerError says why there is no usable answer.

        Raises AsksLater for a trial call that asks the judge.
        """
        self.start()
        assert self._connection is not None
        with contextlib.suppress(OSError):  # it died meanwhile; waiting for its reply tells how
            judge = None if self._judge is None else not batch.trial
            self._connection.send_bytes(pickle.dumps({**batch.texts, "judge": judge}))
        try:
            reply = self._reply(timeout_s)
        except AnswerError:
            raise
        except BaseException:
            self.close()  # interrupted: a late reply must not be taken for the next call's
            raise
        if "later" in reply:
            raise AsksLater
        if "failure" in reply:
            raise AnswerError(reply["failure"], reply["detail"])
        return Answer(reply["rewards"], reply["scores"], reply["logs"], reply["notes"])

    def take_report(self) -> Report:
        """What the judge cost that it asked; the caller counts the retries."""
        return {} if self._judge is None else self._judge.take_report()

    def _reply(self, timeout_s: float) -> dict[str, Any]:
        """The reply to a call, after the judge's answers to what it asks on the way."""
        left_s = timeout_s
        while True:
            start = time.monotonic()
            message = self._message(left_s, timeout_s)
            left_s = max(left_s - (time.monotonic() - start), 0.0)
            if "ask" not in message:
                return message
            questions = [message]
            reply = None
            while reply is None and (more := self._message_at_once()) is not None:
                if "ask" in more:
                    questions.append(more)
                else:
                    reply = more  # a thread of user code asked, and nobody waits for it
            self._answer(questions)
            if reply is not None:
                return reply

    def _message_at_once(self) -> dict[str, Any] | None:
        assert self._connection is not None
        return self._message(AT_ONCE_S, AT_ONCE_S) if self._connection.poll(AT_ONCE_S) else None

    def _message(self, left_s: float, timeout_s: float) -> dict[str, Any]:
        assert self._connection is not None and self._process is not None
        try:
            if self._connection.poll(left_s):
                return json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            code = self._wait(1.0)
            self.close()
            how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
            raise AnswerError("crashed", f"its process ended with {how}") from None
        self.close()
        raise AnswerError("timeout", f"no answer within {timeout_s:g} s; the process was ended")

    def _answer(self, questions: Sequence[Mapping[str, Any]]) -> None:
        """Ask the judge those questions together that are to be answered alike, and send its answers."""
        alike: dict[str, list[Mapping[str, Any]]] = {}
        for question in questions:
            form = json.dumps([question["schema"], question["options"]])
            alike.setdefault(form, []).append(question)
        for several in alike.values():
            for number, answer in self._asked_together(several):
                with contextlib.suppress(OSError):  # it died meanwhile; waiting for its reply tells how
                    assert self._connection is not None
                    self._connection.send_bytes(pickle.dumps({"ask": number, **answer}))

    def _asked_together(self, questions: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        assert self._judge is not None, "only a judge that is there is given to user code"
        items = [item for question in questions for item in question["items"]]
        try:
            answers = iter(self._judge.ask(items, questions[0]["schema"], **questions[0]["options"]))
        except (UserError, ValueError) as error:
            if len(questions) > 1:  # one of them is wrong
                for question in questions:
                    yield from self._asked_together([question])
            else:
                yield questions[0]["ask"], {"error": str(error)}
            return
        for question in questions:
            yield question["ask"], {"answers": [next(answers) for _ in question["items"]]}

    def _wait(self, seconds: float) -> int | None:
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._process.returncode

    def close(self) -> None:
        """End the process and all that it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # the whole group has gone already
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
