"""`openrlhf-ext annotate`. Nothing heavy is imported before the flags are right."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from openrlhf_ext.cli import boundary
from openrlhf_ext.cli.help import answer_help
from openrlhf_ext.config import parse
from openrlhf_ext.config.annotate import AnnotateConfig


def main(argv: Sequence[str]) -> int:
    if answer_help("annotate", argv, AnnotateConfig):
        return 0
    parsed = parse(AnnotateConfig, argv)
    for note in parsed.notes:
        print(note, file=sys.stderr)
    from openrlhf_ext.cli.annotate_run import run

    return run(parsed.config)


if __name__ == "__main__":
    boundary.run(main)
