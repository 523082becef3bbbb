"""Calls in a thread, in order; and a process that ends although one of them never returns."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from openrlhf_ext.trainers.background import Background

HANGING = """
import threading
from openrlhf_ext.trainers.background import Background

Background("rollouts").submit(threading.Event().wait)
print("ended")
"""


def test_calls_are_worked_off_in_order_in_one_thread():
    background, seen = Background("rollouts"), []
    futures = [background.submit(lambda i=i: seen.append((i, threading.get_ident())) or i) for i in range(20)]
    assert [future.result(10) for future in futures] == list(range(20))
    assert [number for number, _ in seen] == list(range(20))
    assert len({thread for _, thread in seen} | {threading.get_ident()}) == 2
    background.close()


def test_an_error_belongs_to_its_call():
    background = Background("rollouts")
    bad, good = background.submit(lambda: 1 / 0), background.submit(lambda: 7)
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    assert good.result(10) == 7
    background.close()


def test_a_call_that_never_returns_does_not_keep_the_process():
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "ended\n"
