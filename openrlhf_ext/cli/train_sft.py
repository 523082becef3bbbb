"""`openrlhf-ext sft` and `python -m openrlhf_ext.cli.train_sft`: supervised fine-tuning.

Nothing heavy is imported before the flags are right: help and a wrong flag answer within a second.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from openrlhf_ext.cli import boundary
from openrlhf_ext.cli.main import dispatch
from openrlhf_ext.cluster.environment import prepare_environment
from openrlhf_ext.config import parse


def main(argv: Sequence[str]) -> int:
    parsed = parse("sft", argv)
    for note in parsed.notes:
        print(note, file=sys.stderr)
    prepare_environment(parsed.config.ray.address, parsed.config.ray.bind)
    from openrlhf_ext.cli.supervised_run import run

    return run("sft", parsed)


if __name__ == "__main__":
    boundary.run(lambda argv: dispatch(["sft", *argv]))
