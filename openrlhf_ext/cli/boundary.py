"""The one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from openrlhf_ext.errors import UserError


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 2 with the sentence of a UserError, 130 after Ctrl-C, else what `main` returns.

    Any other exception is a defect of ours and keeps its traceback.
    """
    try:
        code = main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        # An error that crossed a process carries the remote traceback in its text; its cause is the sentence.
        print(getattr(error, "cause", error), file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        code = 130
    gc.freeze()  # else the interpreter looks through all modules for garbage before it ends, which takes seconds
    sys.exit(code)
