"""`openrlhf-ext negatives IN OUT`: wrong answers by rule, as prompt/chosen/rejected rows for DPO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from openrlhf_ext.cli import boundary
from openrlhf_ext.data.negatives import RULE_NAMES, NegativeSettings, RuleName, make_negatives
from openrlhf_ext.errors import DataError
from openrlhf_ext.track.files import write_atomically


@dataclass(frozen=True, slots=True)
class NegativesArguments:
    """Make wrong answers from right ones by rules; only where a rule changed something is a row written."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """Rows with a prompt and its right answer: files, folders or hub names."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The JSON Lines file to write: prompt, chosen, rejected, rule."""
    rules: tuple[RuleName, ...] = RULE_NAMES
    """Which rules; each that can change an answer gives a row."""
    one_per_row: bool = False
    """One row for an answer, by a rule drawn from those that can change it."""
    prompt_key: str = "prompt"
    """Column of the prompt, a text or messages."""
    chosen_key: str = "chosen"
    """Column of the right answer, a text."""
    split: str = "train"
    """The split of a hub data set."""
    max_samples: int | None = None
    """At most this many rows."""
    seed: int = 0
    """Of what a rule changes."""


def main(argv: Sequence[str] | None = None) -> int:
    a = tyro.cli(NegativesArguments, args=argv, prog="openrlhf-ext negatives")
    if a.target.suffix != ".jsonl":
        raise DataError(f"{a.target} does not end in .jsonl, so no command would read it: give the file such a name.")
    if not a.rules:
        raise DataError(f"--rules names no rule: give one or more of {', '.join(RULE_NAMES)}, or leave the flag out.")
    made = make_negatives(
        NegativeSettings(
            dataset=a.source,
            split=a.split,
            prompt_key=a.prompt_key,
            chosen_key=a.chosen_key,
            rules=tuple(dict.fromkeys(a.rules)),
            one_per_row=a.one_per_row,
            max_samples=a.max_samples,
            seed=a.seed,
        )
    )
    a.target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(a.target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made.rows).encode())
    by_rule = ", ".join(f"{made.counts[rule]} by {rule}" for rule in dict.fromkeys(a.rules))
    print(f"{len(made.rows)} rows in {a.target}: {by_rule}")
    print(f"{made.counts['unchanged']} of {made.counts['rows']} answers could not be changed by any rule")
    return 0


if __name__ == "__main__":
    boundary.run(main)
