"""The command line itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from openrlhf_ext.cli.checks.finding import Finding, error, in_two, ok, warning
from openrlhf_ext.config import Parsed, Violation

AREA = "flags"


def flag_findings(command: str, parsed: Parsed, violations: Sequence[Violation]) -> Iterator[Finding]:
    """One for each rule that is broken, and what the command would say of the flags."""
    from openrlhf_ext.cli.main import COMMANDS

    if command not in COMMANDS:
        text = f"{command} is not in this version yet"
        yield warning(AREA, text, "its flags, models and data are checked all the same; it cannot be started.")
    for note in parsed.notes:
        yield ok(AREA, note)
    for violation in dict.fromkeys(violations):
        yield _finding(str(violation))
    if not violations:
        yield ok(AREA, f"{len(parsed.explicit)} flags are set, and no rule is broken")


def _finding(said: str) -> Finding:
    flag, is_required, what = said.partition(": it is required: ")
    if is_required:
        return error(AREA, f"{flag} is required", f"give {what}")
    text, remedy = in_two(said)
    return error(AREA, text, remedy)
