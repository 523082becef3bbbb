"""A real Chromium, a real server as a user starts it, and answers to judge."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

sys.path += [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "e2e")]
from jobs import MODULES
from served import Served

MODULES.setdefault("assess", "openrlhf_ext.cli.assess")
# None of it goes anywhere but to the loopback address.
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starting a browser and several servers takes a while on a busy machine."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        yield started
        started.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    """`serve(*flags)` starts one; all are ended after the test."""
    with ExitStack() as stack:

        def start(*flags: str) -> Served:
            served = Served(tmp_path, *flags)
            stack.callback(served.close)
            return served

        yield start
