"""A reward server that is slow, busy, broken, killed and started again: real ones, on this machine."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from openrlhf_ext.errors import RewardError
from openrlhf_ext.rewards.http import HttpSource
from openrlhf_ext.rewards.load import RewardSettings, load_reward
from openrlhf_ext.rewards.sources import HttpSettings
from openrlhf_ext.types import Prompt, Rollout, ScoreFailure


class Server:
    """Answers each query with the number in it, after what `misbehave(number of the request, numbers)` does.

    It may return (status, headers, body) to be sent instead.
    """

    def __init__(self, port: int = 0, misbehave: Callable | None = None) -> None:
        self.requests: list[list[float]] = []
        self.misbehave = misbehave or (lambda n, numbers: None)
        self.at_work = self.most_at_work = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                numbers = [float(q) if q.isdecimal() else math.nan for q in body["query"]]
                with lock:
                    outer.requests.append(numbers)
                    n = len(outer.requests)
                    outer.at_work += 1
                    outer.most_at_work = max(outer.most_at_work, outer.at_work)
                try:
                    status, headers, body = outer.misbehave(n, numbers) or (200, {}, json.dumps({"rewards": numbers}))
                finally:
                    with lock:
                        outer.at_work -= 1
                if status == 0:  # gone without a word
                    self.connection.close()
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 64

            def handle_error(self, *_):
                """Clients that have gone are what this is about."""

        self._server = Quiet(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/get_reward"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def kill(self) -> None:
        if not self._thread.is_alive():
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def serving(misbehave: Callable | None = None, port: int = 0):
    server = Server(port, misbehave)
    try:
        yield server
    finally:
        server.kill()


def groups(n: int, size: int = 2):
    """Groups whose answers are the numbers 0, 1, 2 ..."""
    made = []
    for g in range(n):
        prompt = Prompt(str(g), (1,), "")
        texts = [str(g * size + i) for i in range(size)]
        made.append((prompt, [Rollout(str(g), i, (1, 2), (False, True), (0.0, 0.0), t, "stop", (0, 0))
                              for i, t in enumerate(texts)]))  # fmt: skip
    return made


def scored(url: str, n: int, *, http: HttpSettings, timeout_s: float = 10.0, **settings):
    """The rewards of n groups of two, None for failures, and the report's counts."""
    given = RewardSettings(on_error="drop_group", timeout_s=timeout_s, http=http, **{"backoff_s": 0.02, **settings})
    with load_reward([url], given) as reward:
        found = reward.score(groups(n))
        counts = {name.removeprefix("reward/http/"): metric.value for name, metric in reward.take_report().items()}
    values = [group if isinstance(group, ScoreFailure) else [score.value for score in group] for group in found]
    return values, counts


def numbers(n: int) -> list[list[float]]:
    return [[2.0 * g, 2.0 * g + 1] for g in range(n)]


def test_a_batch_goes_in_parts_so_many_at_a_time():
    def slowly(n, found):
        time.sleep(0.15)

    with serving(slowly) as server:
        values, counts = scored(server.url, 12, http=HttpSettings(batch_size=3, concurrency=4))
        assert values == numbers(12)
        assert sorted(map(tuple, server.requests)) == [tuple(map(float, range(i, i + 3))) for i in range(0, 24, 3)]
        assert server.most_at_work == 4
    assert counts["requests"] == 8 and counts["rows"] == 24 and counts["seconds"] >= 0.3


def test_busy_then_free_only_the_refused_part_again_and_not_before_it_is_time():
    seen: list[float] = []

    def busy(n, found):
        if found[0] == 6:
            seen.append(time.monotonic())
            if len(seen) == 1:
                return 429, {"Retry-After": "1"}, "busy"
        return None

    with serving(busy) as server:
        values, counts = scored(server.url, 6, http=HttpSettings(batch_size=3))
        assert values == numbers(6)
        assert len(server.requests) == 5
    assert seen[1] - seen[0] >= 1.0
    assert counts["retries/429"] == 1


@pytest.mark.parametrize("status", [500, 502, 503])
def test_errors_that_go_away(status):
    with serving(lambda n, found: (status, {}, "oops") if n <= 2 else None) as server:
        values, counts = scored(server.url, 4, http=HttpSettings(), max_retries=2)
    assert values == numbers(4)
    assert counts[f"retries/{status}"] == 2


def test_errors_for_ever_are_a_failure_of_each_group_and_cost_little():
    with serving(lambda n, found: (500, {}, "broken")) as server:
        start = time.monotonic()
        values, counts = scored(server.url, 32, http=HttpSettings(), max_retries=2)
        assert time.monotonic() - start < 5
        assert len(server.requests) <= 3 + 16
    assert [failure.reason for failure in values] == ["exception"] * 32
    assert "HTTP status 500: broken" in values[0].detail
    assert counts["given_up"] == 64


def test_one_row_that_breaks_the_server_costs_its_group_alone():
    def breaks(n, found):
        return (500, {}, "cannot do 9") if 9 in found else None

    with serving(breaks) as server:
        values, counts = scored(server.url, 16, http=HttpSettings(), max_retries=1)
    assert isinstance(values[4], ScoreFailure)
    assert [v for i, v in enumerate(values) if i != 4] == [v for i, v in enumerate(numbers(16)) if i != 4]
    assert counts["given_up"] == 1


def test_numbers_that_are_none_fail_their_group_alone():
    def nan(n, found):
        return 200, {}, json.dumps({"rewards": [math.nan if x == 3 else x for x in found]})

    with serving(nan) as server:
        values, counts = scored(server.url, 4, http=HttpSettings(batch_size=4), max_retries=1)
    assert isinstance(values[1], ScoreFailure) and values[1].reason == "not_finite"
    assert [values[0], *values[2:]] == [numbers(4)[0], *numbers(4)[2:]]
    assert counts["given_up"] == 1


def test_a_mistake_of_ours_is_not_repeated():
    with serving(lambda n, found: (404, {}, "no such model")) as server:
        values, _ = scored(server.url, 2, http=HttpSettings(), max_retries=5)
        assert len(server.requests) == 1
    assert "HTTP status 404: no such model" in values[0].detail


def test_a_slow_request_is_over_at_its_time_limit_while_others_are_answered():
    def slow(n, found):
        if found[0] == 0:
            time.sleep(3)

    with serving(slow) as server:
        start = time.monotonic()
        values, counts = scored(server.url, 4, http=HttpSettings(batch_size=2), timeout_s=0.4, max_retries=1)
        assert time.monotonic() - start < 2
    assert values[0].reason == "timeout" and values[1:] == numbers(4)[1:]
    assert counts["retries/timeout"] == 1 and counts["given_up"] == 2


def test_a_body_that_dribbles_is_over_too():
    def dribble(n, found):
        for _ in range(30):
            time.sleep(0.1)

    with serving(dribble) as server:
        values, _ = scored(server.url, 1, http=HttpSettings(), timeout_s=0.3, max_retries=0)
    assert values[0].reason == "timeout"


def test_killed_in_the_middle_of_a_batch_and_back_nothing_is_lost():
    state = {"killed": False}
    first = Server()

    def die(n, found):
        if n == 3:
            state["killed"] = True
        return (0, {}, "") if state["killed"] else None

    first.misbehave = die
    later: list[Server] = []

    def come_back():
        while not state["killed"]:
            time.sleep(0.01)
        first.kill()
        time.sleep(0.5)
        later.append(Server(first.port))

    thread = threading.Thread(target=come_back)
    thread.start()
    values, counts = scored(first.url, 10, http=HttpSettings(batch_size=2, concurrency=2), max_retries=5, backoff_s=0.1)
    thread.join()
    later[0].kill()
    assert values == numbers(10)
    assert counts["retries/connection"] >= 2 and "given_up" not in counts
    unanswered = {x for request in first.requests[2:] for x in request}
    assert unanswered <= {x for request in later[0].requests for x in request}


def test_a_server_that_hangs_is_not_waited_for_again_and_again():
    hang = {"on": True}

    def hangs(n, found):
        if hang["on"]:
            time.sleep(1.5)

    with serving(hangs) as server:
        http = HttpSettings(batch_size=2, concurrency=2, failures_to_open=4, cooldown_s=1.0)
        settings = RewardSettings(on_error="drop_group", timeout_s=0.2, max_retries=1, backoff_s=0.01, http=http)
        with load_reward([server.url], settings) as reward:
            start = time.monotonic()
            assert all(isinstance(group, ScoreFailure) for group in reward.score(groups(40)))
            assert time.monotonic() - start < 2  # 40 requests of 0.2 s, each twice, two at a time: 8 s
            assert len(server.requests) <= 6
            report = reward.take_report()
            assert report["reward/http/refused"].value >= 36
            hang["on"] = False
            assert isinstance(reward.score(groups(1))[0], ScoreFailure)  # the circuit is still open
            time.sleep(1.1)
            values = [[score.value for score in group] for group in reward.score(groups(5))]
            assert values == numbers(5)


def test_several_servers_share_a_batch_and_stand_in_for_each_other():
    with serving() as one, serving() as two:
        http = HttpSettings(batch_size=1, concurrency=2)
        values, _ = scored(f"{one.url}|{two.url}", 10, http=http)
        assert values == numbers(10)
        assert len(one.requests) == len(two.requests) == 10
        one.kill()
        values, counts = scored(f"{one.url}|{two.url}", 10, http=http)
        assert values == numbers(10)
        assert len(two.requests) == 30
        assert 1 <= counts["retries/connection"] <= 6  # then its circuit is open, and the other one is asked


def test_abort_says_what_the_server_said():
    with serving(lambda n, found: (503, {}, "loading the model")) as server:
        settings = RewardSettings(max_retries=1, backoff_s=0.01)
        with load_reward([server.url], settings) as reward, pytest.raises(RewardError, match="loading the model"):
            reward.score(groups(2))


def test_a_trial_call_is_made_once():
    with serving(lambda n, found: (503, {}, "down")) as server:
        with load_reward([server.url], RewardSettings()) as reward, pytest.raises(RewardError, match="503"):
            reward.probe([Prompt("0", (1,), "")])
        assert len(server.requests) == 1


@pytest.mark.parametrize("spec", ["http://", "http://a|ftp://b", "https:///x", "http://a:port/"])
def test_urls_without_a_host(spec):
    with pytest.raises(RewardError, match="names no host"):
        HttpSource("x", spec)
