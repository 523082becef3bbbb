"""Each phase has its own peak, and whatever says that memory is not enough is known for what it is."""

from __future__ import annotations

import errno
import pickle

import pytest
import torch

from openrlhf_ext.device import Device
from openrlhf_ext.device import peaks as module
from openrlhf_ext.device.host_memory import resident_bytes, shared_bytes
from openrlhf_ext.device.peaks import Peak, PeakMeter, lack_of_memory
from openrlhf_ext.errors import OutOfMemory

CPU = Device("cpu", 0, frozenset())
MB = 1_000_000


def hold(megabytes: int) -> None:
    torch.ones(megabytes * MB // 4)


@pytest.fixture
def meter() -> PeakMeter:
    return PeakMeter(CPU, "policy")


def test_a_phase_does_not_see_what_was_freed_before_it(meter: PeakMeter):
    with meter("load"):
        hold(400)
    with meter("train"):
        hold(50)
    with meter("train"):
        pass
    before = resident_bytes("VmRSS")
    peaks = meter.take()
    assert list(peaks) == ["load", "train"]
    assert 340 * MB < peaks["load"].host - peaks["train"].host < 360 * MB
    shared = shared_bytes()
    assert 40 * MB < peaks["train"].host + shared - before < 60 * MB, "the most of all that a phase did"
    assert not any(peak.gpu or peak.reserved or peak.sampled for peak in peaks.values())
    assert meter.take() == {}


def test_a_lap_is_everything_since_the_last(meter: PeakMeter):
    meter.lap()
    hold(300)
    assert meter.lap().host - meter.lap().host > 250 * MB


def test_where_peaks_cannot_be_reset_the_size_at_the_end_is_told(meter: PeakMeter, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "reset_resident_peak", lambda: False)
    with meter("load"):
        hold(400)
    (peak,) = meter.take().values()
    assert peak.sampled
    assert peak.host == pytest.approx(resident_bytes("VmRSS") - shared_bytes(), abs=20 * MB)


def test_peaks_add_up_to_the_most():
    assert Peak(1, 5, 3).most(Peak(2, 4, 9, sampled=True)) == Peak(2, 5, 9, sampled=True)


def test_torch_that_cannot_allocate_is_out_of_memory(meter: PeakMeter):
    with pytest.raises(OutOfMemory) as caught:
        with meter("train"):
            torch.empty(1 << 60, dtype=torch.uint8)
    lack = caught.value.shortage
    assert (lack.role, lack.phase) == ("policy", "train")
    assert "DefaultCPUAllocator" in lack.reason and "1152921504606846976 bytes" in lack.reason
    assert lack.held > 50 * MB and lack.total > lack.free > 50 * MB
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.shortage == lack
    assert str(again).startswith("Out of memory in phase train of the policy (DefaultCPUAllocator: can't allocate")
    assert str(again).endswith("GB were free.")


def test_python_that_cannot_allocate_is_out_of_memory(meter: PeakMeter):
    with pytest.raises(OutOfMemory, match=r"phase save of the policy \(MemoryError\)"):
        with meter.guard("save"):
            bytearray(1 << 60)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), "CUDA out of memory. Tried"),
        (RuntimeError("CUDA error: out of memory\nCompile with ..."), "CUDA error: out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "CUDA error: CUBLAS"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_says_so(error: Exception, expected: str):
    assert lack_of_memory(error).startswith(expected)
    wrapped = ValueError("the model cannot be loaded")
    wrapped.__cause__ = error
    assert lack_of_memory(wrapped).startswith(expected)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("out of memory, says the model"), OSError(errno.ENOENT, "no")]
)
def test_what_does_not(error: Exception, meter: PeakMeter):
    assert lack_of_memory(error) is None
    with pytest.raises(type(error)) as caught:
        with meter("train"):
            raise error
    assert caught.value is error
