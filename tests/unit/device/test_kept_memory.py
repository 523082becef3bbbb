from __future__ import annotations

import subprocess
import sys

PROBE = """
import resource
import numpy as np
from openrlhf_ext.device.host_memory import keep_freed_memory

if {keeps}:
    keep_freed_memory()
blocks = 8 * [64 << 20]

def copy():
    for size in blocks:
        np.full(size, 1, np.uint8)

copy()
before = resource.getrusage(resource.RUSAGE_SELF)
copy()
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_minflt - before.ru_minflt)
"""


def faults(keeps: bool) -> int:
    environment = {"NUMPY_MADVISE_HUGEPAGE": "0", "PYTHONPATH": ":".join(sys.path)}
    probe = [sys.executable, "-c", PROBE.format(keeps=keeps)]
    return int(subprocess.run(probe, capture_output=True, text=True, check=True, env=environment).stdout)


def test_memory_that_was_freed_is_not_handed_out_anew():
    assert faults(keeps=True) * 20 < faults(keeps=False)
