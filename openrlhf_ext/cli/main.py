"""`openrlhf-ext COMMAND ...`: the console script. A command's module is imported when it is run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from openrlhf_ext.cli import boundary
from openrlhf_ext.errors import ConfigError

if TYPE_CHECKING:
    from openrlhf_ext.config import Parsed

# name -> (module with main(argv) -> exit code, what it does)
COMMANDS: Mapping[str, tuple[str, str]] = {
    "rl": ("openrlhf_ext.cli.train_ppo_ray", "reinforcement learning from a reward function"),
    "sft": ("openrlhf_ext.cli.train_sft", "supervised fine-tuning"),
    "rm": ("openrlhf_ext.cli.train_rm", "a preference model from pairs of answers"),
    "dpo": ("openrlhf_ext.cli.train_dpo", "direct preference optimisation"),
    "serve-rm": ("openrlhf_ext.cli.serve_rm", "a reward or preference model behind HTTP, as a source of rewards"),
    "judge": (
        "openrlhf_ext.cli.judge",
        "a judge held against labelled rows (calibrate), or behind HTTP (serve)",
    ),
    "annotate": ("openrlhf_ext.cli.annotate", "subjects for rows, by the judge: ids of a taxonomy"),
    "assess": (
        "openrlhf_ext.cli.assess",
        "people judge outputs: a page or the terminal (serve), what it says (report), files of it (export)",
    ),
    "eval": ("openrlhf_ext.cli.eval", "a model on data sets: rates with intervals, by group and subject"),
    "plan": ("openrlhf_ext.cli.plan", "what fits, how many steps, how long: before it starts"),
    "check": ("openrlhf_ext.cli.check", "what would go wrong with a command, all of it at once, before it starts"),
    "negatives": ("openrlhf_ext.cli.negatives", "wrong answers made from right ones by rules, as pairs for DPO"),
    "tiny-model": ("openrlhf_ext.cli.tiny_model", "build a tiny model and its tokenizer, without a network"),
}


def dispatch(argv: Sequence[str]) -> int:
    """Run the command that `argv` names. Raises ConfigError on a name that is not there."""
    if not names_one("openrlhf-ext", argv, {name: words for name, (_, words) in COMMANDS.items()}):
        return 0
    command, *rest = argv
    if "--help" in rest or "-h" in rest:
        from openrlhf_ext import config
        from openrlhf_ext.cli.help import answer_help

        if command in config.TREES:
            answer_help(command, rest)
            return 0
    return importlib.import_module(COMMANDS[command][0]).main(rest)


def names_one(program: str, argv: Sequence[str], commands: Mapping[str, str]) -> bool:
    """Whether `argv` begins with one of these commands; where it asks for them instead, they are printed.

    Raises ConfigError for any other word.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(f"usage: {program} COMMAND ...\n")
        for name, words in commands.items():
            print(f"  {name:<12}{words}")
        print(f"\n{program} COMMAND --help lists the flags of a command.")
        return False
    if argv[0] not in commands:
        from openrlhf_ext.config.nearest import nearest

        near = nearest(argv[0], commands, dashes=False)
        ask = f"did you mean {near}" if near else f"the commands are {', '.join(commands)}"
        raise ConfigError(f"{program} {argv[0]}: there is no such command; {ask}.")
    return True


def subcommand(
    program: str, argv: Sequence[str], commands: Mapping[str, tuple[type, str]]
) -> tuple[str, Parsed] | None:
    """The one that `argv` begins with, and its flags by its tree; None where they asked for help and have it.

    Raises ConfigError for a word that is none of them, and as `parse` does.
    """
    if not names_one(f"openrlhf-ext {program}", argv, {name: words for name, (_, words) in commands.items()}):
        return None
    from openrlhf_ext.cli.help import read_flags

    parsed = read_flags(f"{program} {argv[0]}", argv[1:], commands[argv[0]][0])
    return None if parsed is None else (argv[0], parsed)


def main() -> NoReturn:
    boundary.run(dispatch)


if __name__ == "__main__":
    main()
