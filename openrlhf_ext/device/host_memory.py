"""How much memory the machine gives this process, and whether the kernel has taken processes away for want of it."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""More than any machine has: version 1 of control groups says "no limit" with the largest page-aligned number."""


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """From now on large blocks that this process frees stay its own for the next ones, instead of going back to the
    kernel, which would hand out every page anew. Its size stays at its peak. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def host_bytes() -> int:
    """The memory of this machine, or of its part that this process's control group may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (_number(folder / limit) for folder, limit, _ in _groups())
    return min([physical, *(limit for limit in limits if limit is not None and limit < _UNLIMITED)])


def free_host_bytes() -> int | None:
    """What can still be had without swapping; None where the system does not say."""
    free = [kilobytes * 1024] if (kilobytes := _field(_PROC / "meminfo", "MemAvailable")) is not None else []
    for folder, limit, usage in _groups():
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None and most < _UNLIMITED:
            free.append(max(most - used, 0))
    return min(free, default=None)


def limit_of_process() -> int | None:
    """What `ulimit` lets this process take, where it is set."""
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=None)


def kernel_kills() -> int:
    """How many processes of this machine the kernel has killed for want of memory since it started (0: unknown)."""
    return _field(_PROC / "vmstat", "oom_kill") or 0


def resident_bytes(field: str) -> int | None:
    """VmRSS (now) or VmHWM (at the most) of this process."""
    kilobytes = _field(_PROC / "self" / "status", field)
    return None if kilobytes is None else kilobytes * 1024


def shared_bytes() -> int:
    """What of this process's resident size other processes have to answer for: pages of libraries, mostly.

    The kernel looks through all pages for it: 25 ms for each GB.
    """
    rollup = _PROC / "self" / "smaps_rollup"
    resident, proportional = _field(rollup, "Rss"), _field(rollup, "Pss")
    return 0 if resident is None or proportional is None else (resident - proportional) * 1024


def reset_resident_peak() -> bool:
    """Let VmHWM start again from what is resident now; False where the kernel refuses (it needs no rights on Linux)."""
    try:
        (_PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _groups() -> Iterator[tuple[Path, str, str]]:
    """The control groups of this process that may limit memory: their folders, and the files of limit and usage."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, names = _CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        elif not controllers:
            root, names = _CGROUPS, ("memory.max", "memory.current")
        else:
            continue
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):  # a limit of any group around it holds as well
            if folder.is_relative_to(root):
                yield folder, *names


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _field(file: Path, name: str) -> int | None:
    """The number behind a name in a file of `name: number` or `name number` lines."""
    try:
        text = file.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(name):
            words = line.replace(":", " ").split()
            if words[0] == name:
                return int(words[1])
    return None
