"""What holds for every test, whoever starts it."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A script's `&` has Ctrl-C ignored, and what the tests start would inherit that and could not be interrupted."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
