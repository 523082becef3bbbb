"""`assess serve` as a user starts it."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jobs import Job, job, run

from openrlhf_ext.assess.assessment import JUDGEMENTS
from openrlhf_ext.device.rendezvous import free_port


class Served:
    """`assess serve` on a port that stays, in a folder; it can be killed and started again."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._flags = ["serve", "--assess.folder", "assessment", *flags, "--port", str(free_port("127.0.0.1"))]
        self.links: dict[str, str] = {}
        self.start()

    def start(self) -> None:
        self.job: Job = self._stack.enter_context(job("assess", self._flags, self.folder))
        self.job.until(lambda: "Ctrl-C stops the server" in self.job.output, "links", 120)
        self.links = dict(re.findall(r"^(\S+): (http://\S+) \(", self.job.output, re.MULTILINE))

    def kill(self) -> None:
        self.job.kill_driver()

    def close(self) -> None:
        self._stack.close()

    def lines(self) -> list[dict[str, Any]]:
        """What is on the disk."""
        text = (self.folder / "assessment" / JUDGEMENTS).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def report(self) -> dict[str, Any]:
        return json.loads(run("assess", ["report", "--assess.folder", "assessment", "--json"], self.folder))
