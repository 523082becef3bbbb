"""A circuit breaker for the tasks of one event loop (pybreaker knows threads and Tornado only)."""

from __future__ import annotations


class Breaker:
    """Opens after `limit` failures in a row, for `rest_s`; then one task tries, and its outcome decides.

    Times are the caller's clock, in seconds.
    """

    def __init__(self, limit: int, rest_s: float) -> None:
        self._limit = limit
        self._rest_s = rest_s
        self._in_a_row = 0
        self._open_until: float | None = None

    def lets_through(self, now: float) -> bool:
        """Whether to try now. The one that is let through after the rest holds the others back for another."""
        if self._open_until is None:
            return True
        if now < self._open_until:
            return False
        self._open_until = now + self._rest_s
        return True

    def succeeded(self) -> None:
        self._in_a_row = 0
        self._open_until = None

    def failed(self, now: float) -> None:
        self._in_a_row += 1
        if self._in_a_row >= self._limit:
            self._open_until = now + self._rest_s

    def words(self) -> str:
        return f"{self._in_a_row} questions in a row had no answer, so it is left alone for {self._rest_s:g} s"
