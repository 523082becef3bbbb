"""The trainer's side of `child`: one process per reward file, restarted when it died or hung."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import openrlhf_ext
from openrlhf_ext.errors import RewardError
from openrlhf_ext.rewards.answer import EXPECTED_SIGNATURE, Answer, AnswerError
from openrlhf_ext.types import Prompt, Report, Rollout


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """One entry per sample in every list. `columns` are the other columns of the samples' rows.

    `samples` are what the texts are of; a trial call has none.
    """

    queries: list[str]
    prompts: list[str]
    labels: list[Any]
    columns: Mapping[str, Sequence[Any]]
    samples: Sequence[tuple[Prompt, Rollout]] = ()

    @property
    def texts(self) -> dict[str, Any]:
        """What a reward function is called with."""
        return {
            "queries": self.queries, "prompts": self.prompts, "labels": self.labels, "columns": dict(self.columns)
        }  # fmt: skip

    def part(self, start: int, stop: int) -> RewardBatch:
        columns = {name: column[start:stop] for name, column in self.columns.items()}
        part = slice(start, stop)
        return RewardBatch(self.queries[part], self.prompts[part], self.labels[part], columns, self.samples[part])


class PluginSource:
    """A Python file with OpenRLHF's `reward_func`, run in a process of its own."""

    def __init__(self, name: str, path: Path, *, load_timeout_s: float) -> None:
        self.name = name
        self.origin = str(path)
        self._load_timeout_s = load_timeout_s
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
            [sys.executable, "-m", f"{__package__}.child", str(theirs.fileno()), self.origin],
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
        """One call for the whole batch; AnswerError says why there is no usable answer."""
        self.start()
        assert self._connection is not None
        with contextlib.suppress(OSError):  # it died meanwhile; waiting for its reply tells how
            self._connection.send_bytes(pickle.dumps(batch.texts))
        try:
            reply = self._reply(timeout_s)
        except AnswerError:
            raise
        except BaseException:
            self.close()  # interrupted: a late reply must not be taken for the next call's
            raise
        if "failure" in reply:
            raise AnswerError(reply["failure"], reply["detail"])
        return Answer(reply["rewards"], reply["scores"], reply["logs"])

    def take_report(self) -> Report:
        """Nothing beside the retries, which the caller counts."""
        return {}

    def _reply(self, timeout_s: float) -> dict[str, Any]:
        assert self._connection is not None and self._process is not None
        try:
            if self._connection.poll(timeout_s):
                return json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            code = self._wait(1.0)
            self.close()
            how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
            raise AnswerError("crashed", f"its process ended with {how}") from None
        self.close()
        raise AnswerError("timeout", f"no answer within {timeout_s:g} s; the process was ended")

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
