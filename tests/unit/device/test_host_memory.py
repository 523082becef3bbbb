"""What the machine has, and what its control groups leave of it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from openrlhf_ext.device import host_memory

GB = 10**9


def test_without_a_limit_it_is_the_machines():
    assert 0 < host_memory.host_bytes() <= psutil.virtual_memory().total
    assert 0 < host_memory.free_host_bytes() < host_memory.host_bytes()
    assert host_memory.kernel_kills() >= 0
    assert host_memory.resident_bytes("VmRSS") <= host_memory.resident_bytes("VmHWM")


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/job/step\n", {"job/memory.max": GB, "job/memory.current": GB // 4, "job/step/memory.max": "max"}),
        (
            "4:memory:/job/step\n3:cpuset:/\n",
            {
                "memory/job/memory.limit_in_bytes": GB,
                "memory/job/memory.usage_in_bytes": GB // 4,
                "memory/job/step/memory.limit_in_bytes": 9223372036854771712,
                "memory/memory.limit_in_bytes": 9223372036854771712,
            },
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_a_group_around_the_process_limits_it(
    cgroup: str, files: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(cgroup)
    (proc / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    for name, value in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(f"{value}\n")
    monkeypatch.setattr(host_memory, "_PROC", proc)
    monkeypatch.setattr(host_memory, "_CGROUPS", groups)
    assert host_memory.host_bytes() == GB
    assert host_memory.free_host_bytes() == GB - GB // 4
    assert host_memory.kernel_kills() == 0, "a kernel that does not say"
    assert host_memory.resident_bytes("VmRSS") is None
