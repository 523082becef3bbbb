"""The command line itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from openrlhf_ext.cli.checks.finding import Finding, error, in_two, ok
from openrlhf_ext.config import Parsed, Violation

AREA = "flags"


def flag_findings(parsed: Parsed, violations: Sequence[Violation]) -> Iterator[Finding]:
    """One for each rule that is broken, and what the command would say of the flags."""
    for note in parsed.notes:
        yield ok(AREA, note)
    for violation in dict.fromkeys(violations):
        text, remedy = in_two(str(violation))
        yield error(AREA, text, remedy)
    if not violations:
        yield ok(AREA, f"{len(parsed.explicit)} flags are set, and no rule is broken")
