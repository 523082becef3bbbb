"""What the user sees while a run works: one line, and what a long wait waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
"""What the user is told goes through this one: a live line and other lines then keep out of each other's way."""


class StepProgress:
    """`step i/N` with the figures that matter: a live line on a terminal, elsewhere a plain line every `every` steps.

    `shown` maps metric names to the short labels of the line; metrics that are absent are left out.
    """

    def __init__(self, total: int, shown: Mapping[str, str], console: Console = console, *, every: int = 1) -> None:
        self._total = total
        self._shown = shown
        self._every = every
        self._console = console
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=20), TimeElapsedColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.description}"), console=self._console)
        self._task = self._bar.add_task("", total=total)
        if self._console.is_terminal:
            self._bar.start()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        line = "  ".join(f"{label} {values[name]:.4g}" for name, label in self._shown.items() if name in values)
        phases = [f"{name[8:]} {spent:.1f}s" for name, spent in values.items() if name.startswith("seconds/")]
        if phases:
            line += "  [" + " ".join(phases) + "]"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, description=line.replace("[", r"\["))
        elif step % self._every == 0 or step == self._total:
            self._console.print(f"step {step}/{self._total}  {line}", markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A line of its own that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._console.is_terminal:
            self._bar.stop()


@contextmanager
def waiting(what: str, interval: float = 5.0, console: Console = console) -> Iterator[None]:
    """Say every `interval` seconds what is being waited for; a wait shorter than that says nothing."""
    done = threading.Event()
    start = time.monotonic()

    def say() -> None:
        while not done.wait(interval):
            console.print(f"waiting for {what} ({time.monotonic() - start:.0f} s)", markup=False, highlight=False)

    speaker = threading.Thread(target=say, name="waiting", daemon=True)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()
