"""The tracker of live tensors is exact on little programs whose bytes can be counted by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

PATH = Path(__file__).resolve().parents[3] / "benchmarks" / "live_bytes.py"
KB = 4000
"""Of a (10, 100) float32 tensor."""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("live_bytes", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "live_bytes", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_views_are_free_and_keep_their_storage_alive(module):
    with module.LiveBytes() as tracker:
        whole = torch.ones(10, 100)
        part = whole.view(-1)[:10]
        assert tracker.live == KB
        del whole
        assert tracker.live == KB
        del part
    assert tracker.live == 0 and tracker.peak == KB


def test_the_peak_is_the_most_at_once(module):
    with module.LiveBytes(trace=True) as tracker:
        first = torch.ones(10, 100)
        with tracker.during("sum"):
            second = first + 1
            third = first + second
        del second
        fourth = third.half()
    assert tracker.peak == 3 * KB and tracker.live == 2 * KB + KB // 2
    assert tracker.peak_moment == "sum" and tracker.peaks["sum"] == 3 * KB
    assert [made.nbytes for made in tracker.at_peak()] == [KB] * 3
    assert fourth.dtype == torch.float16


def test_what_autograd_saves_counts_until_backward(module):
    weight = torch.ones(100, 100, requires_grad=True)
    x = torch.ones(10, 100)
    tracker = module.LiveBytes(trace=True)
    tracker.adopt(iter([weight, x]))
    given = tracker.live
    with tracker:
        y = (x @ weight).tanh()  # tanh saves its result, the product is gone
        assert tracker.live == given + KB
        loss = y.sum()
        del y
        assert tracker.live == given + KB + 4  # held by the graph
        loss.backward()
        assert tracker.live == given + 100 * 100 * 4 + 4  # the gradient, and the loss
    by_backward = [made for made in tracker.at_peak() if made.shape == (100, 100) and made.op != "given"]
    assert len(by_backward) == 1 and by_backward[0].nbytes == 40_000


def test_given_tensors_count_with_their_gradients(module):
    weight = torch.ones(10, 100, requires_grad=True)
    weight.sum().backward()
    tracker = module.LiveBytes()
    tracker.adopt(iter([weight]))
    assert tracker.live == 2 * KB
    weight.grad = None
    assert tracker.live == KB


def test_only_its_device_counts(module):
    with module.LiveBytes() as tracker:
        shape = torch.ones(10, 100, device="meta")
    assert tracker.peak == 0 and shape.shape == (10, 100)
