"""The errors a user can mend. Our own invariants are `assert`s, not errors.

Every message is one sentence that says what is wrong, where, and the remedy.
The command line prints it and exits with code 2.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path


class UserError(Exception):
    """Something the user can mend; the command line answers with its text and exit code 2."""


class ConfigError(UserError):
    """A flag or a combination of flags that cannot be honoured."""


class DataError(UserError):
    """A data set, tokenizer, model folder or checkpoint that cannot be used as it is."""


class ResourceError(UserError):
    """The machine or the cluster has less than was asked for (GPUs, memory, a free port)."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Where memory ran out: the planner's names of the role and the phase, and the first words of what was raised.

    Bytes, None where nobody can say: the most that the process held in this phase, and what is there to hold it.
    """

    role: str
    phase: str
    reason: str
    held: int | None = None
    free: int | None = None
    total: int | None = None


class OutOfMemory(ResourceError):
    """A process wanted more memory than there is. Its one argument is the Shortage, so that it can be pickled."""

    def __init__(self, shortage: Shortage) -> None:
        super().__init__(shortage)
        self.shortage = shortage

    def __str__(self) -> str:
        lack = self.shortage
        of = f" of {lack.total / 1e9:.2f}" if lack.total is not None else ""
        facts = [f"it held at most {lack.held / 1e9:.2f} GB"] if lack.held is not None else []
        facts += [f"{lack.free / 1e9:.2f}{of} GB were free"] if lack.free is not None else []
        measured = f"; {', '.join(facts)}" if facts else ""
        return f"Out of memory in phase {lack.phase} of the {lack.role} ({lack.reason}){measured}."


class RewardError(UserError):
    """A reward source that cannot be loaded, or that failed at run time under `on_error abort`."""


def missing_file(path: Path) -> str:
    """One sentence on a file that is not there, with the nearest name in its folder."""
    folder = path.parent
    if not folder.is_dir():
        return f"{path} does not exist, nor does its folder {folder}: check the path."
    near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1)
    hint = f"did you mean {folder / near[0]}?" if near else "check the path."
    return f"{path} does not exist: {hint}"
