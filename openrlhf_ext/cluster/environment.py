"""What Ray reads from the environment when it is imported: called before that, so Ray is not imported here."""

from __future__ import annotations

import ipaddress
import os
import secrets
from pathlib import Path


def prepare_environment(address: str | None, bind: str) -> None:
    """Settle Ray's security and limits for this process and those it starts; what the user set stands.

    A Ray of our own (`address` None) asks for a token, made for this run where there is none. A cluster
    that is joined decides for itself; a token that is there is used.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's memory monitor kills the newest worker when the machine is 95 % full; that is a
    # decision for the planner and the kernel, not for a heuristic in the middle of a step.
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    if address is None:
        if is_loopback(bind):
            # Ray's own switch for machines whose cluster is one host: every service then binds to loopback.
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # A private Ray's control process ends with the run: whoever misses it for so long ends too.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "15")
        # Idle workers started in advance serve nobody here: every role brings an environment of its own.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if os.environ["RAY_AUTH_MODE"] == "token" and not _has_token():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    elif _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _has_token() -> bool:
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()
