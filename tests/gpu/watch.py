"""How much of the GPU is in use, by all processes together, and in which phase of a run."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

Sample = tuple[float, int]
"""Seconds of the day, MiB in use."""


@contextmanager
def gpu_memory(interval_ms: int = 50) -> Iterator[list[Sample]]:
    """The samples so far, a list that grows while the block lasts; the first is there when it begins."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    asked = ["nvidia-smi", "-i", first, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    watcher = subprocess.Popen([*asked, "-lms", str(interval_ms)], stdout=subprocess.PIPE, text=True)
    samples: list[Sample] = []

    def read() -> None:
        assert watcher.stdout is not None
        for line in watcher.stdout:
            samples.append((time.time(), int(line)))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + 30
        while not samples:
            assert watcher.poll() is None and time.monotonic() < deadline, "nvidia-smi tells no memory"
            time.sleep(0.01)
        yield samples
    finally:
        watcher.kill()
        watcher.wait()
        reader.join()


def by_phase(phases_file: Path, samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """For each phase how often it ran, its first and its usual seconds, and the most memory that was in use in it.

    A phase that is shorter than the time between two samples has the memory of the sample before it.
    """
    rows = [json.loads(line) for line in phases_file.read_text().splitlines()]
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["phase"] for row in rows):
        own = [row for row in rows if row["phase"] == name]
        seconds = [row["end"] - row["start"] for row in own]
        found[name] = {
            "times": len(own),
            "first_seconds": round(seconds[0], 3),
            "median_seconds": round(median(seconds[1:] or seconds), 3),
            "peak_mib": max(_peak(samples, row) for row in own),
        }
    return found


def _peak(samples: Sequence[Sample], row: Mapping[str, float]) -> int:
    inside = [used for at, used in samples if row["start"] <= at <= row["end"]]
    return max(inside, default=[used for at, used in samples if at < row["start"]][-1])


def table(phases: Mapping[str, Mapping[str, float]]) -> str:
    lines = [f"{'phase':<10}{'times':>6}{'first s':>10}{'median s':>10}{'peak MiB':>10}"]
    for name, row in phases.items():
        figures = f"{row['times']:>6}{row['first_seconds']:>10.2f}{row['median_seconds']:>10.2f}{row['peak_mib']:>10}"
        lines.append(f"{name:<10}{figures}")
    return "\n".join(lines)
