"""A scheduler's warning before the time is up: end after this step, with a checkpoint, and come back later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from openrlhf_ext.track.progress import console

COME_BACK = 75
"""Exit code of a run that ended early and can go on: EX_TEMPFAIL of sysexits.h."""


@contextmanager
def stop_on_signal(number: int = signal.SIGUSR1) -> Iterator[Callable[[], bool]]:
    """Within the block the signal ends nothing at once; what is yielded tells whether it has come."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        if not asked.is_set():
            asked.set()
            console.print(f"{signal.Signals(number).name}: saving after this step, then ending.")

    before = signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(number, before)


def say_resumable(step: int, total: int, checkpoints: str) -> None:
    console.print(
        f"ended early after step {step} of {total}, saved under {checkpoints}; --ckpt.load_enable goes on from there.",
        soft_wrap=True,
    )
