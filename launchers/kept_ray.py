"""A Ray that stays until it is told to end (SIGTERM): `launchers/local.sh --keep` starts it as `kept_ray.py FILE`.

It is the private Ray of a run, held open: on the loopback address, with the user's token. FILE says which process
holds it and at which address it answers, and is there for as long as it does. (`ray start --block` brings services
that nobody here asks for, on ports that another Ray of this machine may have, and ends where one of them does.)
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from openrlhf_ext.cluster.environment import prepare_environment
from openrlhf_ext.device import choose_device

SLOTS = 64
"""Logical CPUs: processes take turns on the cores."""


def main() -> None:
    file = Path(sys.argv[1])
    prepare_environment(None, "127.0.0.1")
    import ray  # reads its environment when it is imported

    from openrlhf_ext.cluster.session import RaySettings, ray_session

    with ray_session(RaySettings(cpus=SLOTS, gpus=choose_device().count)):
        try:
            file.write_text(f"{os.getpid()} {ray.get_runtime_context().gcs_address}\n")
            signal.pause()
        finally:
            file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
