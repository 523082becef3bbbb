"""docs/planning.md: every line under a command is what that command prints. Run as a script it writes them anew."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from openrlhf_ext.cli.main import dispatch

PAGE = Path(__file__).parents[3] / "docs" / "planning.md"
BLOCK = re.compile(r"```console\n\$ (?P<command>[^\n]+)\n(?P<output>.*?)```\n", re.DOTALL)


def printed(command: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert dispatch(shlex.split(command)[1:]) == 0
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


@pytest.mark.parametrize(
    "block", BLOCK.finditer(PAGE.read_text(encoding="utf-8")), ids=lambda block: block["command"][:60]
)
def test_the_page_shows_what_the_command_prints(block):
    assert printed(block["command"]) == block["output"]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    fresh = BLOCK.sub(lambda block: f"```console\n$ {block['command']}\n{printed(block['command'])}```\n", text)
    PAGE.write_text(fresh, encoding="utf-8")
    sys.exit(0)
