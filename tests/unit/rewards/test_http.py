"""A real HTTP server that speaks OpenRLHF's JSON."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from openrlhf_ext.errors import RewardError
from openrlhf_ext.rewards.load import RewardSettings, load_reward
from openrlhf_ext.types import Prompt, Rollout, ScoreFailure


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        if self.path == "/slow":
            time.sleep(0.3)
            return  # the client has gone
        rewards = [float(len(q) - len(p)) for q, p in zip(request["query"], request["prompts"])]
        body = {
            "/get_reward": json.dumps({"rewards": rewards, "scores": rewards, "extra_logs": {"dummy_scores": rewards}}),
            "/html": "<html>busy</html>",
        }.get(self.path, json.dumps({"rewards": rewards[:1]}))
        self.send_response(503 if self.path == "/down" else 200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def groups(label="7"):
    prompt = Prompt("a", (1,), "Q: ", label)
    rollouts = [Rollout("a", i, (1, 2), (False, True), (0.0, 0.0), "x" * i, "stop", (0, 0)) for i in range(3)]
    return [(prompt, rollouts)]


def url(server, path):
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_one_request_for_a_batch(server):
    with load_reward([url(server, "/get_reward")], RewardSettings()) as fn:
        fn.probe()
        [scores] = fn.score(groups())
    assert [s.value for s in scores] == [0, 1, 2]
    assert scores[2].filter_value == 2
    assert scores[2].parts[f"127.0.0.1:{server.server_port}/dummy_scores"] == 2
    assert server.requests[1:] == [{"query": ["Q: ", "Q: x", "Q: xx"], "prompts": ["Q: "] * 3, "labels": ["7"] * 3}]


@pytest.mark.parametrize(
    ("path", "reason", "detail"),
    [
        ("/down", "exception", "HTTP status 503"),
        ("/html", "wrong_type", "<html>busy</html>"),
        ("/short", "wrong_length", "1 numbers for 3"),
        ("/slow", "timeout", "0.1 s"),
    ],
)
def test_failures(server, path, reason, detail):
    timeout_s = 0.1 if path == "/slow" else 20.0
    settings = RewardSettings(on_error="drop_group", max_retries=1, backoff_s=0.01, timeout_s=timeout_s)
    with load_reward([url(server, path)], settings) as fn:
        [failure] = fn.score(groups())
        assert isinstance(failure, ScoreFailure)
        assert failure.reason == reason
        assert detail in failure.detail


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with load_reward([f"http://127.0.0.1:{port}"], RewardSettings()) as fn, pytest.raises(RewardError, match="Connect"):
        fn.probe()


def test_label_that_json_cannot_carry(server):
    with load_reward([url(server, "/get_reward")], RewardSettings()) as fn:
        with pytest.raises(RewardError, match="not JSON serializable"):
            fn.score(groups(label={1, 2}))
