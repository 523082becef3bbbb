"""`openrlhf-ext annotate`. Nothing heavy is imported before the flags are right."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_ext.cli import boundary
from openrlhf_ext.cli.help import read_flags
from openrlhf_ext.config.annotate import AnnotateConfig


def main(argv: Sequence[str]) -> int:
    parsed = read_flags("annotate", argv, AnnotateConfig)
    if parsed is None:
        return 0
    from openrlhf_ext.cli.annotate_run import run

    return run(parsed.config)


if __name__ == "__main__":
    boundary.run(main)
