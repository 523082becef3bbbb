"""Rewards of a judge, a student or a reward model for an unmodified OpenRLHF 0.11.2: `--reward.remote_url THIS_FILE`.

OpenRLHF calls `reward_func` for one sample at a time, from many threads. Here the calls of a short while become one
batch again, which is sent to a server of ours (`openrlhf-ext judge serve`, `openrlhf-ext serve-rm`) or any other that
takes {"query", "prompts", "labels"}. Every caller gets its own rewards, or its own error.

Environment variables:
    OPENRLHF_EXT_REWARD_URL        the server's address, such as http://127.0.0.1:5000/get_reward; several with |
    OPENRLHF_EXT_REWARD_TIMEOUT_S  seconds one request may take (180)
    OPENRLHF_EXT_REWARD_BATCH      samples of one request (64)
    OPENRLHF_EXT_REWARD_WINDOW_MS  milliseconds that a sample waits for others (20)
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

if importlib.util.find_spec("openrlhf_ext") is None:  # the file of a checkout, named by its path
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from openrlhf_ext.errors import ConfigError, RewardError
from openrlhf_ext.rewards.answer import Answer, AnswerError, bad_positions
from openrlhf_ext.rewards.http import HttpSource
from openrlhf_ext.rewards.process import RewardBatch

URL = "OPENRLHF_EXT_REWARD_URL"
REQUESTS_AT_ONCE = 4
MAX_RETRIES = 4


class _Call:
    """What one caller asked, and its answer to be.

    No dataclass: OpenRLHF loads this file without an entry in `sys.modules`, where dataclasses look theirs up.
    """

    def __init__(self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> None:
        self.queries = list(queries)
        self.prompts = list(prompts)
        self.labels = list(labels)
        self.answer: Future[Answer] = Future()


class Gatherer:
    """Calls of many threads as batches: of those within `window_s` of the first one, at most `most` samples.

    While `REQUESTS_AT_ONCE` requests are under way the next batch goes on growing.
    """

    def __init__(self, source: HttpSource, *, window_s: float, most: int, timeout_s: float) -> None:
        self._source = source
        self._window_s = window_s
        self._most = most
        self._timeout_s = timeout_s
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._free = threading.Semaphore(REQUESTS_AT_ONCE)
        self._senders = ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="reward")
        threading.Thread(target=self._gather, name="reward-gatherer", daemon=True).start()

    def ask(self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> Answer:
        """The rewards of these samples. Raises RewardError where the server has none for one of them."""
        try:
            json.dumps(list(labels))
        except (TypeError, ValueError) as error:
            raise RewardError(f"the labels cannot be sent as JSON ({error}).") from None
        call = _Call(queries, prompts, labels)
        self._calls.put(call)
        return call.answer.result()

    def _gather(self) -> None:
        while True:
            calls = [self._calls.get()]
            count, until = len(calls[0].queries), time.monotonic() + self._window_s
            is_free = False
            while count < self._most:
                left_s = until - time.monotonic()
                if left_s <= 0 and (is_free := self._free.acquire(blocking=False)):
                    break
                try:
                    calls.append(self._calls.get(timeout=max(left_s, self._window_s / 4, 0.001)))
                    count += len(calls[-1].queries)
                except queue.Empty:
                    continue
            if not is_free:
                self._free.acquire()
            self._senders.submit(self._send, calls)

    def _send(self, calls: Sequence[_Call]) -> None:
        try:
            batch = RewardBatch(
                [query for call in calls for query in call.queries],
                [prompt for call in calls for prompt in call.prompts],
                [label for call in calls for label in call.labels],
                {},
            )
            answer, failure = self._answer(batch)
            start = 0
            for call in calls:
                part = answer.part(start, start + len(call.queries))
                start += len(call.queries)
                if failure is not None and bad_positions(part):
                    sentence = f"{self._source.origin} gave no reward ({failure.reason}: {failure.detail})."
                    call.answer.set_exception(RewardError(sentence))
                else:
                    call.answer.set_result(part)
        except BaseException as error:
            for call in calls:
                if not call.answer.done():
                    call.answer.set_exception(error)
            raise
        finally:
            self._free.release()

    def _answer(self, batch: RewardBatch) -> tuple[Answer, AnswerError | None]:
        try:
            return self._source.ask(batch, self._timeout_s), None
        except AnswerError as error:
            if error.answer is None:
                raise
            return error.answer, error  # which says for which rows


def gatherer_from_environment() -> Gatherer:
    """Raises ConfigError for a variable that is missing or no number."""
    url = os.environ.get(URL)
    if not url:
        raise ConfigError(
            f"{URL} is not set: give it the address of the reward server, such as http://127.0.0.1:5000/get_reward, "
            "on every node before Ray starts."
        )
    timeout_s = _number("OPENRLHF_EXT_REWARD_TIMEOUT_S", 180.0)
    window_s = _number("OPENRLHF_EXT_REWARD_WINDOW_MS", 20.0) / 1000
    most = int(_number("OPENRLHF_EXT_REWARD_BATCH", 64))
    source = HttpSource("reward", url, max_retries=MAX_RETRIES)
    return Gatherer(source, window_s=window_s, most=most, timeout_s=timeout_s)


def _number(name: str, default: float) -> float:
    try:
        value = float(os.environ.get(name, default))
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError(f"{name}={os.environ[name]}: give a number above 0.")
    return value


_lock = threading.Lock()
_gatherer: Gatherer | None = None


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **kwargs: Any) -> dict[str, Any]:
    """What OpenRLHF 0.11.2 reads: tensors of one number per query. Raises RewardError where the server has none."""
    import torch

    global _gatherer
    with _lock:
        if _gatherer is None:
            _gatherer = gatherer_from_environment()
    answer = _gatherer.ask(queries, prompts, labels)
    rewards = torch.tensor(answer.rewards, dtype=torch.float32)
    return {
        "rewards": rewards,
        "scores": rewards if answer.scores is None else torch.tensor(answer.scores, dtype=torch.float32),
        "extra_logs": {name: torch.tensor(log, dtype=torch.float32) for name, log in answer.logs.items()},
    }


if __name__ == "reward_func":  # the name that OpenRLHF loads it by: a missing address is said before it trains
    _gatherer = gatherer_from_environment()
