"""How many cores this process may compute on, and how many threads processes that share them have each.

A Slurm job, a container or `taskset` may leave us a few of the machine's cores: threads beyond those only take turns.
"""

from __future__ import annotations

import os


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def threads_for(processes: int) -> int:
    """Threads of each of so many processes that compute at the same time on this machine."""
    return max(1, usable_cores() // max(processes, 1))


def threads_of_rank(ranks: int) -> int:
    """Threads of this one of the ranks that a launcher started on this machine.

    `srun` may have bound each to cores of its own, which are not divided again: it says how many all have together.
    """
    together = int(os.environ.get("SLURM_CPUS_ON_NODE", "0")) or usable_cores()
    return min(usable_cores(), max(1, together // ranks))
