"""`openrlhf-ext check COMMAND ...`: everything that can go wrong with a command, found in seconds, all at once."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from openrlhf_ext.cli.checks.finding import LEVELS, Finding, of_error, warning
from openrlhf_ext.cli.checks.flags import AREA as FLAGS
from openrlhf_ext.cli.checks.flags import flag_findings
from openrlhf_ext.cli.checks.lanes import Check, Lane, run_lanes
from openrlhf_ext.cli.checks.subject import Subject
from openrlhf_ext.config import COMMANDS, Parsed, examine
from openrlhf_ext.errors import ConfigError

LIMIT_S = 12.5
"""For everything together: an answer within 15 s, the start and the end of the interpreter included."""

USAGE = """\
usage: openrlhf-ext check COMMAND [the command's flags] [--json] [--limit_s SECONDS]

Looks at everything that the command needs, starts nothing, and says all it finds at once: device, packages, models,
tokenizers, data, rewards, judge, agent, folders, disk, memory, Ray. Exit code 2 if the command would fail, else 0.
The commands are {commands}; --json prints one object, --limit_s gives all checks
together other than {limit:g} seconds.
"""


def main(argv: Sequence[str]) -> int:
    start = time.monotonic()
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE.format(commands=", ".join(COMMANDS), limit=LIMIT_S))
        return 0
    command, *flags = argv
    if command not in COMMANDS:
        raise ConfigError(f"openrlhf-ext check {command}: it checks {', '.join(COMMANDS)}; name one of them.")
    if "--help" in flags or "-h" in flags:
        from openrlhf_ext.cli.help import answer_help

        answer_help(command, flags)
        return 0
    as_json, limit_s, flags = _own_flags(flags)
    with _output_kept_apart():
        findings, defects = check(command, flags, limit_s)
    fine = all(finding.level != "error" for finding in findings)
    seconds = time.monotonic() - start
    if as_json:
        answer = {"command": command, "ok": fine, "findings": [dataclasses.asdict(item) for item in findings]}
        print(json.dumps({**answer, "seconds": round(seconds, 2)}))
    else:
        _print_table(findings, seconds)
    if defects:
        raise defects[0]  # ours, not the user's; what was found is said all the same
    return 0 if fine else 2


def _own_flags(flags: Sequence[str]) -> tuple[bool, float, list[str]]:
    """Whether JSON is wanted, the time, and the flags of the command."""
    own = [flag for flag in flags if flag != "--json"]
    if "--limit_s" not in own:
        return len(own) < len(flags), LIMIT_S, own
    place = own.index("--limit_s")
    text = own[place + 1] if place + 1 < len(own) else ""
    try:
        limit_s = float(text)
    except ValueError:
        limit_s = 0.0
    if not 0 < limit_s < float("inf"):
        raise ConfigError(f"--limit_s {text}: it takes seconds, more than 0.")
    return len(own) < len(flags), limit_s, own[:place] + own[place + 2 :]


def check(command: str, flags: Sequence[str], limit_s: float) -> tuple[list[Finding], list[Exception]]:
    """What there is to say of a command line, the worst last; and exceptions of our own making."""
    try:
        parsed, violations = examine(command, flags)
        fine, wrong, lanes = not violations, list(flag_findings(command, parsed, violations)), lanes_of(command)
    except ConfigError as raised:  # no list of flags at all: the machine can be looked at all the same
        parsed, fine = Parsed(COMMANDS[command](), frozenset(), ()), False
        unread = warning("others", "only the machine was looked at", "correct the command line, and check again.")
        wrong, lanes = [of_error(FLAGS, raised), unread], lanes_of(command)[:1]
    subject = Subject(command, parsed, flags_are_right=fine, limit_s=limit_s)
    found = run_lanes(lanes, subject, time.monotonic() + limit_s)
    findings = list(_each_said_once([*wrong, *found.findings]))
    areas = list(dict.fromkeys(finding.area for finding in findings))
    in_groups = sorted(findings, key=lambda finding: (LEVELS.index(finding.level), areas.index(finding.area)))
    return in_groups, found.defects


def lanes_of(command: str) -> list[Lane]:
    """What runs side by side. Later checks of a lane use what earlier ones made; heavy imports are in one only."""
    from openrlhf_ext.cli.checks import (
        agents,
        devices,
        folders,
        judge,
        machine,
        models,
        packages,
        plan,
        rewards,
        rows,
        tokenizers,
    )

    heavy = [
        Check(packages.AREA, packages.find_imports, 1.0),
        Check(folders.AREA, folders.find_folders, 0.3),
        Check(devices.AREA, devices.find_device, 0.6),
        Check(models.AREA, models.find_models, 0.6),
        Check(tokenizers.AREA, tokenizers.find_tokenizer, 0.5),
        Check(rows.AREA, rows.find_rows, 0.5),
        Check(rows.EVALUATION, rows.find_evaluation_rows, 0.3),
        Check(plan.AREA, plan.find_plan, 0.3),
        Check(machine.AREA, machine.find_ray_here, 0.2),
        Check(devices.AREA, devices.find_ranks, 0.8),
    ]
    light = [Check(packages.AREA, packages.find_packages, 0.5), Check(machine.AREA, machine.find_limits, 0.1)]
    if command != "rl":
        return [light, heavy]
    heavy[5:5] = [Check(judge.AREA, judge.find_model, 0.4)]
    heavy.append(Check(judge.AREA, judge.find_judge, 0.8))
    files = [[Check(rewards.AREA, rewards.find_rewards, 1.0)], [Check(agents.AREA, agents.find_agent, 1.0)]]
    return [light, heavy, *files]


def _each_said_once(findings: Sequence[Finding]) -> Iterator[Finding]:
    """A fault that keeps later checks from their work is theirs only by reference."""
    said: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        first = said.setdefault((finding.text, finding.remedy), finding)
        if first is finding:
            yield finding
        elif first.area != finding.area and finding.level == "error":
            yield warning(finding.area, f"not checked further: see {first.area}", "mend that, and check again.")


@contextmanager
def _output_kept_apart() -> Iterator[None]:
    """What others print meanwhile (users' reward files, libraries) goes to stderr: stdout is for the answer."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _print_table(findings: Sequence[Finding], seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    colours = {"ok": "green", "warning": "yellow", "error": "bold red"}
    for finding in findings:
        words = Text(finding.text)
        if finding.remedy:
            words.append(f"\n{finding.remedy}", style="cyan")
        table.add_row(Text(finding.level, style=colours[finding.level]), finding.area, words)
    console.print(table)
    counts = [f"{sum(item.level == level for item in findings)} {level}" for level in reversed(LEVELS)]
    console.print(f"{', '.join(counts)}, in {seconds:.1f} s", markup=False)
