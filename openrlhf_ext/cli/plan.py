"""`openrlhf-ext plan sft|rm|dpo|rl [the command's own flags]`: what fits, how many steps, how long, before it starts.

Without torch, Ray, a GPU or the hub: flags, a model's shape and arithmetic.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from openrlhf_ext.cli.plan_data import data_size
from openrlhf_ext.cli.plan_hardware import hardware_of, ranks_as_flags
from openrlhf_ext.config import COMMANDS, Parsed, flags_of, parse
from openrlhf_ext.config.nearest import nearest
from openrlhf_ext.config.plan_request import PlanRequest, split_request
from openrlhf_ext.errors import ConfigError, UserError
from openrlhf_ext.plan.auto import chosen
from openrlhf_ext.plan.calibrate import efficiency_of_run
from openrlhf_ext.plan.describe import as_json
from openrlhf_ext.plan.make import make_plan
from openrlhf_ext.plan.trial import Command
from openrlhf_ext.plan.types import Plan


def main(argv: Sequence[str]) -> int:
    """Print the plan of a command line. Raises UserError where there is nothing to plan."""
    if "--help" in argv or "-h" in argv:
        from openrlhf_ext.cli.help import answer_help

        answer_help("plan sft|rm|dpo|rl", argv, PlanRequest)
        print("All other flags are those of the command: openrlhf-ext sft --help")
        return 0
    command, flags = _command(argv)
    request, _ = split_request(flags)
    if request.plan.sweep:
        _print_sweep(command, flags, request)
        return 0
    plan, notes = plan_of(command, flags)
    for note in notes:
        print(note, file=sys.stderr)
    if request.json:
        print(json.dumps(as_json(plan), indent=1))
    else:
        from openrlhf_ext.cli.plan_text import full, show, summary

        show(summary(plan) if request.plan.brief else full(plan))
    return 0


def _command(argv: Sequence[str]) -> tuple[Command, list[str]]:
    if not argv or argv[0] not in COMMANDS:
        given = argv[0] if argv else ""
        near = nearest(given, COMMANDS, dashes=False) if given else None
        ask = f"did you mean {near}" if near else f"name one of {', '.join(COMMANDS)}, then its flags"
        raise ConfigError(f"openrlhf-ext plan {given}: there is no such command to plan; {ask}.")
    return cast(Command, argv[0]), list(argv[1:])


def plan_of(command: Command, flags: Sequence[str]) -> tuple[Plan, tuple[str, ...]]:
    """The plan of a command line with the plan's own flags among it, and notes for the user."""
    request, own = split_request(flags)
    parsed = parse(command, own, planning=True)
    hardware = hardware_of(command, parsed, request)
    if more := ranks_as_flags(command, parsed, request):
        parsed = replace(parse(command, [*own, *more], planning=True), explicit=parsed.explicit)
    plan = _made(command, parsed, request, hardware)
    return plan, parsed.notes


def _made(command: Command, parsed: Parsed, request: PlanRequest, hardware: Any) -> Plan:
    config = parsed.config
    data = data_size(command, config, request.plan.rows, request.plan.mean_tokens, request.plan.tokenize)
    if request.plan.eval_rows is not None:
        data = replace(data, eval_rows=request.plan.eval_rows)
    efficiency = efficiency_of_run(Path(request.calibrate), hardware) if request.calibrate else None
    if not config.memory.auto:
        return make_plan(command, config, parsed.explicit, hardware, data, efficiency)
    config, changes = chosen(command, config, parsed.explicit, hardware, data)
    plan = make_plan(command, config, parsed.explicit, hardware, data, efficiency)
    if changes:
        plan = replace(plan, verdict="fits with " + ", ".join(f"{change.flag} {change.value}" for change in changes))
    return replace(plan, changes=changes)


def _print_sweep(command: Command, flags: Sequence[str], request: PlanRequest) -> None:
    lines = sweep(command, flags, request.plan.sweep)
    if request.json:
        shown = [{"values": values, **_as_line(made)} for values, made in lines]
        print(json.dumps({"sweep": shown}, indent=1))
    else:
        from openrlhf_ext.cli.plan_text import show, sweep_table

        show(sweep_table(lines))


def _as_line(made: Plan | UserError) -> dict[str, Any]:
    return {"error": str(made)} if isinstance(made, UserError) else as_json(made)


def sweep(
    command: Command, flags: Sequence[str], swept: Sequence[str]
) -> list[tuple[Mapping[str, str], Plan | UserError]]:
    """A plan, or why there is none, for each line of values; lists of one length move together.

    Raises ConfigError for a sweep that is no FLAG=a,b,c, a flag that is not there, or lists of different lengths.
    """
    columns = {}
    known = {**flags_of(COMMANDS[command]), **flags_of(PlanRequest)}
    for text in swept:
        name, _, values = text.removeprefix("--").partition("=")
        if not values:
            raise ConfigError(f"--plan.sweep {text}: write FLAG=a,b,c, as in --plan.sweep device.count=4,8,16.")
        if name not in known:
            near = nearest(name, known, dashes=False)
            raise ConfigError(
                f"--plan.sweep {text}: there is no flag {name}" + (f"; did you mean {near}." if near else ".")
            )
        columns[name] = values.split(",")
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise ConfigError("--plan.sweep: flags that move together take the same number of values each.")
    base = _without_sweep(flags)
    return [
        (line, _planned(command, [*base, *(token for name, value in line.items() for token in (f"--{name}", value))]))
        for line in (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    ]


def _planned(command: Command, flags: Sequence[str]) -> Plan | UserError:
    try:
        return plan_of(command, flags)[0]
    except UserError as error:
        return error


def _without_sweep(flags: Sequence[str]) -> list[str]:
    kept: list[str] = []
    inside = False
    for token in flags:
        if token.startswith("--"):
            inside = token.partition("=")[0] == "--plan.sweep"
        if not inside:
            kept.append(token)
    return kept
