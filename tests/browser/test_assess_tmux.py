"""`assess --tui` in a real terminal: keys in, screen out, killed in between, on the files of the page."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import run

import openrlhf_ext
from openrlhf_ext.assess.assessment import JUDGEMENTS
from openrlhf_ext.evaluation.answers import Answerer, AnswerRow, content_keys, write_answers

ITEMS = 6
ROOT = Path(openrlhf_ext.__file__).resolve().parents[1]


class Terminal:
    """A tmux session of its own server, 100 x 30."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._socket = f"assess-{secrets.token_hex(4)}"
        command = shlex.join([sys.executable, "-m", "openrlhf_ext.cli.assess", "--tui", *flags])
        ended = '; code=$?; echo; echo "ended with $code"; exec cat'
        self._tmux("new-session", "-d", "-x", "100", "-y", "30", "-c", str(folder),
                   f"env -u COLUMNS -u LINES PYTHONPATH={shlex.quote(str(ROOT))} {command}{ended}")  # fmt: skip

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._socket, *words], capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    @property
    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    def until(self, words: str, seconds: float = 60) -> str:
        deadline = time.monotonic() + seconds
        while words not in (screen := self.screen):
            if time.monotonic() > deadline:
                pytest.fail(f"no {words!r} within {seconds:g} s:\n{screen}")
            time.sleep(0.05)
        return screen

    def kill_program(self) -> None:
        """The program alone, and no word to it."""
        shell = self._tmux("list-panes", "-F", "#{pane_pid}").strip()
        subprocess.run(["pkill", "-KILL", "-P", shell], check=True)

    def close(self) -> None:
        self._tmux("kill-server")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed (apt-get install tmux)")
    contents = [(f"Question {i}?", None, f"Source {i}.") for i in range(ITEMS)]
    rows = [
        AnswerRow(
            key, 0, "set", prompt, f"Answer number {i} \x1b[31m\x1b]0;owned\x07 goes on.", "right", context=context
        )
        for i, (key, (prompt, _, context)) in enumerate(zip(content_keys(contents), contents))
    ]
    write_answers(tmp_path / "tiny", Answerer("tiny", "f00d"), rows)
    return tmp_path


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "assessment" / JUDGEMENTS).read_text(encoding="utf-8").splitlines()]


def test_judging_in_a_terminal_that_is_killed(folder: Path) -> None:
    flags = ["--assess.folder", "assessment", "--assess.answers", "tiny", "--assess.raters", "anna", "ben"]
    terminal = Terminal(folder, *flags, "--assess.rater", "anna")
    try:
        screen = terminal.until("Item 1 of 6")
        assert re.search(r"Answer number \d ␛\[31m␛\]0;owned␇ goes on\.", screen)  # what would act is shown
        assert re.search(r"Source \d\.", screen) and "tiny" not in screen and "Does the answer hallucinate?" in screen
        terminal.press("m", "Right", "Space", "Right", "Space", "2")
        terminal.until("Item 2 of 6")
        terminal.press("c")
        terminal.press("-l", "no doubt")
        terminal.press("Enter", "n")
        terminal.until("Item 3 of 6")
        terminal.press("?")
        terminal.until("take back the last answer")
        terminal.press("x")  # closes the list and means nothing else
        terminal.press("3")
        terminal.until("Item 4 of 6")
        terminal.press("u")
        terminal.until("Item 3 of 6")
        terminal.kill_program()
        terminal.until("ended with 137")
    finally:
        terminal.close()
    first, second, third, undo = lines(folder)
    number = re.compile(r"number \d")
    assert first["verdict"] == {"present": True, "kind": "wrong_inference", "spans": [[7, 15]]}
    assert (second["verdict"]["present"], second["note"]) == (False, "no doubt")
    assert undo["undo"] == third["id"]

    terminal = Terminal(folder, "--assess.folder", "assessment", "--assess.rater", "anna")
    try:
        terminal.until("Item 3 of 6")
        assert "2 judged, saved" in terminal.screen
        for place in range(3, ITEMS + 1):
            terminal.press("n")
            terminal.until(f"Item {place + 1} of 6" if place < ITEMS else "The end")
        terminal.press("q")
        screen = terminal.until("ended with 0")
        assert "6 of 6 items judged by anna; all is saved in assessment" in screen
    finally:
        terminal.close()
    flags = ["export", "--assess.folder", "assessment", "--export.judgements", "all.jsonl"]
    run("assess", flags, folder)
    rows = [json.loads(line) for line in (folder / "all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == ITEMS and sum(row["hallucinated"] for row in rows) == 1
    (marked,) = [passage["text"] for row in rows for passage in row["passages"]]
    assert number.fullmatch(marked)


def test_a_rater_who_is_not_there(folder: Path) -> None:
    flags = "serve --tui --assess.folder assessment --assess.answers tiny --assess.raters anna --assess.rater carl"
    said = run("assess", flags.split(), folder, exit_code=2)
    assert said.strip() == "'carl' is no rater of this assessment, whose raters are anna: name one of them."
    assert not (folder / "assessment").exists()
