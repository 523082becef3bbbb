"""The errors a user can mend. Our own invariants are `assert`s, not errors.

Every message is one sentence that says what is wrong, where, and the remedy.
The command line prints it and exits with code 2.
"""

from __future__ import annotations

import difflib
from pathlib import Path


class UserError(Exception):
    """Something the user can mend; the command line answers with its text and exit code 2."""


class ConfigError(UserError):
    """A flag or a combination of flags that cannot be honoured."""


class DataError(UserError):
    """A data set, tokenizer, model folder or checkpoint that cannot be used as it is."""


class ResourceError(UserError):
    """The machine or the cluster has less than was asked for (GPUs, memory, a free port)."""


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
