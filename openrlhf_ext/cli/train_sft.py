"""`openrlhf-ext sft` and `python -m openrlhf_ext.cli.train_sft`: supervised fine-tuning.

Nothing heavy is imported before the flags are right: help and a wrong flag answer within a second.
"""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_ext.cli import boundary
from openrlhf_ext.cli.launch import parse_launched
from openrlhf_ext.cli.main import dispatch
from openrlhf_ext.cluster.environment import prepare_environment


def main(argv: Sequence[str]) -> int:
    parsed, launch = parse_launched("sft", argv)
    prepare_environment(parsed.config.ray.address, parsed.config.ray.bind)
    from openrlhf_ext.cli.supervised_run import run

    return run("sft", parsed, launch)


if __name__ == "__main__":
    boundary.run(lambda argv: dispatch(["sft", *argv]))
