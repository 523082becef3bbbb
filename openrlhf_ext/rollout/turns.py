"""Taking turns in an engine: the step loop of one thread, and updates of its weights from another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Between two steps an update may begin, and no step begins before it has ended.

    Nobody starves: an update waits for one step at most, and a loop that an update stopped takes a
    step before the next update begins. An update that failed leaves weights that are partly old and
    partly new; from then on every turn raises RuntimeError, also in a loop that was waiting.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stepping = False
        self._stopped = False  # a loop that waits for the end of an update
        self._updating = False
        self._failure: BaseException | None = None

    @property
    def updating(self) -> bool:
        return self._updating

    @contextmanager
    def step(self) -> Iterator[None]:
        """The loop's turn."""
        with self._changed:
            assert not self._stepping, "one loop at a time"
            self._stopped = True
            self._changed.wait_for(lambda: self._failure or not self._updating)
            self._stopped = False
            self._changed.notify_all()
            self._raise_failure()
            self._stepping = True
        try:
            yield
        finally:
            with self._changed:
                self._stepping = False
                self._changed.notify_all()

    def begin_update(self) -> None:
        """Stop the loop; returns when its step is over."""
        with self._changed:
            self._raise_failure()
            assert not self._updating, "one update at a time"
            self._changed.wait_for(lambda: self._failure or not self._stopped)
            self._raise_failure()
            self._updating = True
            self._changed.wait_for(lambda: not self._stepping)

    @contextmanager
    def part_of_update(self) -> Iterator[None]:
        """Something done to the weights during the update; if it fails the update has failed for good."""
        assert self._updating, "begin_update comes first"
        try:
            yield
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            raise

    def end_update(self) -> None:
        """Let the loop go on."""
        with self._changed:
            self._updating = False
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise RuntimeError("an update of the engine's weights failed half-way") from self._failure
