"""`openrlhf-ext judge calibrate|serve`. Nothing heavy is imported before the flags are right."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_ext.cli import boundary
from openrlhf_ext.cli.main import subcommand
from openrlhf_ext.config.judge_command import CalibrateConfig, ServeJudgeConfig

COMMANDS = {
    "calibrate": (CalibrateConfig, "the judge against labelled rows: agreement, kappa, position bias, consistency"),
    "serve": (ServeJudgeConfig, "the judge behind HTTP, in the form of serve-rm"),
}


def main(argv: Sequence[str]) -> int:
    """Raises ConfigError for a subcommand that is not there, and what the subcommands raise."""
    chosen = subcommand("judge", argv, COMMANDS)
    if chosen is None:
        return 0
    command, parsed = chosen
    if command == "calibrate":
        from openrlhf_ext.cli.judge_calibrate import run

        return run(parsed)
    from openrlhf_ext.rewards.server import listen

    with listen(parsed.config.host, parsed.config.port) as listener:
        from openrlhf_ext.cli.judge_serve import serve_judge

        return serve_judge(parsed, listener)


if __name__ == "__main__":
    boundary.run(main)
