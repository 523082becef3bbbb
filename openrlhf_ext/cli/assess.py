"""`openrlhf-ext assess [serve]|report|export`. Nothing heavy is imported before the flags are right."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_ext.cli import boundary
from openrlhf_ext.cli.main import subcommand
from openrlhf_ext.config.assess import AssessConfig, AssessExportConfig, AssessReportConfig

COMMANDS = {
    "serve": (AssessConfig, "people judge, on a page or with --tui in this terminal (also without a word)"),
    "report": (AssessReportConfig, "rates with intervals, agreement of the raters and with the judge"),
    "export": (AssessExportConfig, "judgements as JSONL, and as preference rows for dpo and rm"),
}


def main(argv: Sequence[str]) -> int:
    """Raises ConfigError for a subcommand that is not there, and what the subcommands raise."""
    if argv and argv[0].startswith("--") and argv[0] != "--help":
        argv = ["serve", *argv]
    chosen = subcommand("assess", argv, COMMANDS)
    if chosen is None:
        return 0
    command, parsed = chosen
    if command == "serve":
        from openrlhf_ext.cli.assess_serve import run as serve

        return serve(parsed)
    if command == "report":
        from openrlhf_ext.cli.assess_report import run as report

        return report(parsed.config)
    from openrlhf_ext.cli.assess_export import run as export

    return export(parsed.config)


if __name__ == "__main__":
    boundary.run(main)
