"""What a Ray cluster's dashboard answers to somebody who sends a job; it may be away, frozen or wrong for a while."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | int
"""A job's status; or a number: of an HTTP error, AWAY or FROZEN."""
AWAY, FROZEN = 0, -1


def details(name: str, status: str, **more: Any) -> dict[str, Any]:
    return {"type": "SUBMISSION", "submission_id": name, "status": status, "entrypoint": "", **more}


@dataclass
class Dashboard:
    """`answers`: on the job that was sent, in their order; the last one stays. `to_send`, `to_stop`: likewise.

    `jobs`: those of the cluster before.
    """

    answers: Sequence[Answer] = ("SUCCEEDED",)
    to_send: Sequence[Answer] = (200,)
    to_stop: Sequence[Answer] = (200,)
    jobs: Sequence[dict[str, Any]] = ()
    exit_code: int | None = None
    sent: list[dict[str, Any]] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)
    address: str = ""

    def wait_for(self, what: str) -> None:
        end = time.monotonic() + 60
        while not self.asked.get(what):
            assert time.monotonic() < end, f"{what} was never asked for"
            time.sleep(0.02)

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[Answer, Any]:
        """The HTTP status, and what comes with it."""
        if path == "/api/version":
            return 200, {"version": "4", "ray_version": "2.55.0", "ray_commit": "c"}
        if path == "/api/jobs/" and method == "GET":
            return 200, list(self.jobs)
        if path == "/api/jobs/":
            self.sent.append(body)
            taken = {"submission_id": body.get("submission_id") or "made", "job_id": "1"}
            return self._next("send", self.to_send), taken
        if path.endswith("/stop"):
            heard = self._next("stop", self.to_stop)
            if heard == 200:
                self.answers = ["STOPPED"]
            return heard, {"stopped": True}
        if path.endswith("/logs/tail"):
            return 503, None
        found = self._next("status", self.answers)
        if isinstance(found, str):
            return 200, details("made", found, driver_exit_code=self.exit_code)
        return found, None

    def _next(self, what: str, answers: Sequence[Answer]) -> Answer:
        count = self.asked.get(what, 0)
        self.asked[what] = count + 1
        return answers[min(count, len(answers) - 1)]


@contextmanager
def serving(dashboard: Dashboard) -> Iterator[Dashboard]:
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            status, content = dashboard.answer(self.command, self.path, body)
            if status == FROZEN:
                over.wait(60)
            if status in (AWAY, FROZEN):
                return  # the connection is closed without a word
            self.send_response(int(status))
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    dashboard.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield dashboard
    finally:
        over.set()
        server.shutdown()
        server.server_close()
