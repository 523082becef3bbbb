"""A warning of the scheduler's: noted, said once, and the former handler stands again afterwards."""

from __future__ import annotations

import os
import signal

import pytest

from openrlhf_ext.track.stop import stop_on_signal


def test_the_signal_is_noted_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with stop_on_signal() as asked:
        assert not asked()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert asked()
    assert signal.getsignal(signal.SIGUSR1) is before
    assert capsys.readouterr().err.count("SIGUSR1: saving after this step, then ending.") == 1
