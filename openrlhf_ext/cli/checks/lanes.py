"""Checks side by side, each within its time: what one of them finds or waits for never keeps the others from it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from openrlhf_ext.cli.checks.finding import Finding, of_error, ok, warning
from openrlhf_ext.cli.checks.subject import NotThereError, Subject
from openrlhf_ext.errors import UserError


@dataclass(frozen=True, slots=True)
class Check:
    """`find` yields what it finds of one area of a set-up, and has `part` of the time that all checks have."""

    area: str
    find: Callable[[Subject], Iterable[Finding]]
    part: float


_running = threading.local()
"""Its `result` is that of the check which runs in the thread that asks."""

Lane = Sequence[Check]
"""Checks that run one after the other, because the later ones use what the earlier ones made."""


@dataclass(slots=True)
class Findings:
    """What all checks found, in the order of the lanes, and exceptions that are defects of ours."""

    findings: list[Finding] = field(default_factory=list)
    defects: list[Exception] = field(default_factory=list)


def run_lanes(lanes: Sequence[Lane], subject: Subject, deadline: float) -> Findings:
    """Run the lanes at the same time. What is not done by `deadline` (of time.monotonic) is a warning that says so."""
    results = [[_Result(check) for check in lane] for lane in lanes]
    threads = [threading.Thread(target=_run_lane, args=(lane, subject, deadline), daemon=True) for lane in results]
    with _Notes(logging.WARNING):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0) + 0.5)
    found = Findings()
    for result in (result for lane in results for result in lane):
        found.findings += result.found()
        if result.defect is not None:
            found.defects.append(result.defect)
    return found


@dataclass(slots=True, eq=False)
class _Result:
    """One check's thread, what it found so far, and how it ended."""

    check: Check
    findings: list[Finding] = field(default_factory=list)
    thread: threading.Thread | None = None
    seconds: float = 0.0
    late: bool = True
    defect: Exception | None = None

    def run(self, subject: Subject, limit_s: float) -> None:
        start = time.monotonic()
        self.thread = threading.Thread(target=self._work, args=(subject,), daemon=True)
        self.thread.start()
        self.thread.join(max(limit_s, 0.0))
        self.seconds = time.monotonic() - start
        self.late = self.thread.is_alive()

    def found(self) -> list[Finding]:
        findings = list(self.findings)
        if self.late:
            text = (
                f"not done after {self.seconds:.1f} s, and left at that" if self.thread else "there was no time for it"
            )
            remedy = "check again when the machine is less busy, or with a larger --limit_s."
            findings.append(warning(self.check.area, text, remedy))
        return findings

    def _work(self, subject: Subject) -> None:
        area = self.check.area
        _running.result = self
        try:
            for finding in self.check.find(subject):
                self.findings.append(finding)
        except UserError as raised:
            self.findings.append(of_error(area, raised))
        except NotThereError as missing:
            self.findings.append(warning(area, f"not checked, for want of {missing}", "mend that, and check again."))
        except Exception as defect:
            if subject.flags_are_right:
                self.defect = defect
            else:  # a value that the rules refuse may have led anywhere
                text = f"not checked further ({type(defect).__name__}: {defect})"
                self.findings.append(warning(area, text, "correct the flags, and check again."))


def _run_lane(lane: Sequence[_Result], subject: Subject, deadline: float) -> None:
    for result in lane:
        left = deadline - time.monotonic()
        if left > 0:
            result.run(subject, min(result.check.part * subject.limit_s, left))


class _Notes(logging.Handler):
    """Keeps what our code says to the user while a check runs it, as a default that became something else."""

    def emit(self, record: logging.LogRecord) -> None:
        result = getattr(_running, "result", None)
        if result is not None:
            result.findings.append(ok(result.check.area, record.getMessage()))

    def __enter__(self) -> _Notes:
        self._logger = logging.getLogger("openrlhf_ext")
        self._propagate, self._logger.propagate = self._logger.propagate, False
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagate
