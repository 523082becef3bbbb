"""The rl command, which also writes when each phase begins and ends, so that who watches the GPU beside it can tell
the phases apart. The environment variable PHASES names the file: one JSON line for each phase, in seconds of the day.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from openrlhf_ext.cli import boundary
from openrlhf_ext.cli.main import dispatch
from openrlhf_ext.track.phases import PhaseClock
from openrlhf_ext.trainers import journal

FILE = "PHASES"


class RecordedClock(PhaseClock):
    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.time()
        with super().__call__(phase):
            yield
        with open(os.environ[FILE], "a") as file:
            file.write(json.dumps({"phase": phase, "start": start, "end": time.time()}) + "\n")


if __name__ == "__main__":
    journal.PhaseClock = RecordedClock  # type: ignore[misc]
    boundary.run(lambda argv: dispatch(["rl", *argv]))
