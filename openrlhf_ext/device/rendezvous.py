"""Where ranks can meet."""

from __future__ import annotations

import socket
from contextlib import closing


def free_port(host: str) -> int:
    """A port of this machine that nobody listens on, at this address."""
    with closing(socket.socket()) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
