"""The scenarios of tests/contract and the way of tests/e2e to run a command, on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent
sys.path += [str(FOLDER.parent / "contract"), str(FOLDER.parent / "e2e")]

collect_ignore = ["publish.py", "recorded_rl.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Counted without a context on the GPU: the tests' own process takes no memory there.
    without = pytest.mark.skipif(torch.cuda.device_count() == 0, reason="no GPU is visible")
    for item in items:
        if item.path.parent == FOLDER:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(without)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(600))
