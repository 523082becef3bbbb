"""`openrlhf-ext serve-rm` and `python -m openrlhf_ext.cli.serve_rm`: a reward model behind HTTP.

Nothing heavy is imported before the flags are right and the port is there: help, a wrong flag and a port that is in use
are answered at once, and clients that come early wait until the model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from openrlhf_ext.cli import boundary
from openrlhf_ext.cli.main import dispatch
from openrlhf_ext.config import parse


def main(argv: Sequence[str]) -> int:
    parsed = parse("serve-rm", argv)
    for note in parsed.notes:
        print(note, file=sys.stderr)
    from openrlhf_ext.rewards.server import listen

    with listen(parsed.config.host, parsed.config.port) as listener:
        from openrlhf_ext.cli.serve_rm_run import run

        return run(parsed, listener)


if __name__ == "__main__":
    boundary.run(lambda argv: dispatch(["serve-rm", *argv]))
