"""`openrlhf-ext eval`. Nothing heavy is imported before the flags are right."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_ext.cli import boundary
from openrlhf_ext.cli.help import read_flags
from openrlhf_ext.config.evaluation import EvalConfig


def main(argv: Sequence[str]) -> int:
    parsed = read_flags("eval", argv, EvalConfig)
    if parsed is None:
        return 0
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
