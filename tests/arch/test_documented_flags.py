"""The flags that docs/algorithms.md names for each algorithm are a command that is taken."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from openrlhf_ext.config import parse

PAGE = Path(__file__).resolve().parents[2] / "docs" / "algorithms.md"
NEEDED = shlex.split("""
--actor.model_name_or_path m --data.prompt_dataset d --reward.remote_url r.py --data.max_len 20000
--rollout.n_samples_per_prompt 8 --rollout.batch_size 32 --train.batch_size 256
""")
WITH = {
    "answers that go on over a change of weights": "--train.async_enable",
    "several passes over a batch": "--train.batch_size 128",
}


def rows() -> Iterator[tuple[str, list[str]]]:
    """Each row's name and flags; a row of corrections has the last parts of their names."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        spans = re.findall(r"`([^`]+)`", cells[-1])
        flags = [span for span in spans if span.startswith("--") and " " in span]
        if not flags and spans and spans[0].split()[0] in ("level", "gating"):
            flags = ["--algo.advantage.is_correction_" + span for span in spans if " " in span]
        if len(cells) == 2 and flags:
            yield cells[0], shlex.split(" ".join(flags))


@pytest.mark.parametrize(("name", "flags"), [pytest.param(*row, id=row[0]) for row in rows()])
def test_the_flags_of_a_row_are_taken(name: str, flags: list[str]):
    if name == "trust region by divergence":
        flags = [*flags, *shlex.split("--algo.advantage.is_correction_level token"),
                 *shlex.split("--algo.advantage.is_correction_threshold 0.1")]  # fmt: skip
    parsed = parse("rl", [*NEEDED, *flags, *shlex.split(WITH.get(name, ""))])
    assert {flag.removeprefix("--") for flag in flags if flag.startswith("--")} <= parsed.explicit


def test_every_table_is_read():
    assert len(list(rows())) >= 18
