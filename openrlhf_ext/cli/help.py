"""The help of a config tree: its sections with the flags most used, or one section in full."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from openrlhf_ext.config import TREES, Flag, Parsed, flags_of, parse
from openrlhf_ext.config.fields import sections_of
from openrlhf_ext.config.nearest import nearest
from openrlhf_ext.errors import ConfigError

_PIPE_WIDTH = 120


def answer_help(command: str, argv: Sequence[str], tree: type | None = None) -> bool:
    """Print help on the command's flags, or those of `tree`, if these arguments ask for it; say whether they did.

    Raises ConfigError on a section that is not there.
    """
    place = next((i for i, token in enumerate(argv) if token in ("--help", "-h")), None)
    if place is None:
        return False
    topic = argv[place + 1] if place + 1 < len(argv) else ""
    topic = topic.removeprefix("--")
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
    tree = tree or TREES[command]
    if topic in ("", "all"):
        _overview(console, command, tree, everything=topic == "all")
    else:
        _section(console, command, tree, topic)
    return True


def read_flags(command: str, argv: Sequence[str], tree: type) -> Parsed | None:
    """The checked flags of the command with this tree, its notes said; None where they asked for help and have it.

    Raises ConfigError as `parse` does.
    """
    if answer_help(command, argv, tree):
        return None
    parsed = parse(tree, argv)
    for note in parsed.notes:
        print(note, file=sys.stderr)
    return parsed


def _overview(console: Console, command: str, tree: type, everything: bool) -> None:
    flags = list(flags_of(tree).values())
    shown = [flag for flag in flags if everything or flag.common]
    console.print(f"usage: openrlhf-ext {command} [--config FILE.yaml ...] [--FLAG VALUE ...]", markup=False)
    console.print("A true|false flag alone means true; flags go over files, later files over earlier ones.\n")
    for name, help_text in sections_of(tree).items():
        own = [flag for flag in flags if flag.path.startswith(name + ".")]
        console.print(Text(f"{name}  {help_text}  ({len(own)} flags: --help {name})", style="bold"))
        _table(console, (flag for flag in shown if flag.path.startswith(name + ".")))
    loose = [flag for flag in flags if "." not in flag.path]
    console.print(Text("flags of no section", style="bold"))
    _table(console, loose)
    console.print("--help SECTION lists one section in full, --help all everything.", markup=False)


def _section(console: Console, command: str, tree: type, topic: str) -> None:
    flags = flags_of(tree)
    own = [flag for path, flag in flags.items() if path == topic or path.startswith(topic + ".")]
    if not own:
        near = nearest(topic, [*sections_of(tree), *flags], dashes=False)
        raise ConfigError(
            f"--help {topic}: there is no such section; "
            + (f"did you mean {near}." if near else f"openrlhf-ext {command} --help lists the sections.")
        )
    if topic in sections_of(tree):
        console.print(Text(f"{topic}  {sections_of(tree)[topic]}", style="bold"))
    _table(console, own)


def _table(console: Console, flags: Iterable[Flag]) -> None:
    table = Table(box=None, show_header=False, pad_edge=True, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold", max_width=24)
    table.add_column(overflow="fold", max_width=24, style="dim")
    table.add_column(overflow="fold", ratio=1)
    for flag in flags:
        words = f"{flag.help} (refused: {flag.refused})" if flag.refused else flag.help
        table.add_row(
            f"--{flag.path}", Text(flag.type_name.replace("|", " | ")), Text(_default(flag.default)), Text(words)
        )
    if table.row_count:
        console.print(table)


def _default(value: Any) -> str:
    if value is None or value == ():
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return repr(value) if isinstance(value, str) and (not value or "\n" in value) else str(value)
