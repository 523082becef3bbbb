"""`openrlhf-ext eval`. Nothing heavy is imported before the flags are right."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from openrlhf_ext.cli import boundary
from openrlhf_ext.cli.help import answer_help
from openrlhf_ext.config import parse
from openrlhf_ext.config.evaluation import EvalConfig


def main(argv: Sequence[str]) -> int:
    if answer_help("eval", argv, EvalConfig):
        return 0
    parsed = parse(EvalConfig, argv)
    for note in parsed.notes:
        print(note, file=sys.stderr)
    if parsed.config.compare is not None:
        from openrlhf_ext.cli.eval_compare import run_compare

        return run_compare(parsed.config)
    if parsed.config.eval.lm_eval is not None:
        from openrlhf_ext.cli.eval_harness import run_harness

        return run_harness(parsed.config)
    from openrlhf_ext.cli.eval_run import run

    return run(parsed)


if __name__ == "__main__":
    boundary.run(main)
