"""What a process needs before it can be one rank of a model."""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
import time
import warnings
from datetime import timedelta
from typing import Any

import torch
import transformers

from openrlhf_ext.device import Device
from openrlhf_ext.device.interfaces import meeting_environment

COLLECTIVE_TIMEOUT = timedelta(minutes=60)
"""How long a rank waits for the others: the slowest phase between two collectives (another model's turn) is shorter."""

LEAVE_WITHIN_S = 60.0
"""How long the first rank stays for others to read what it serves."""


def init_process(
    device: Device,
    rank: int,
    world_size: int,
    local_rank: int,
    master_addr: str,
    master_port: int,
    *,
    served: bool = False,
) -> None:
    """Join the process group of this device's backend, once per process, and prepare DeepSpeed for it.

    `local_rank` counts the devices that this process sees. `served`: who started the ranks keeps the store
    that they meet by.
    """
    if torch.distributed.is_initialized():
        assert (torch.distributed.get_rank(), torch.distributed.get_world_size()) == (rank, world_size)
        return
    os.environ.update(device.environment())
    os.environ.update(meeting_environment(device, master_addr))
    os.environ.update(
        MASTER_ADDR=master_addr,
        MASTER_PORT=str(master_port),
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(local_rank),
    )
    device.select(local_rank)
    store = meeting_point(rank, world_size, master_addr, master_port, served)
    torch.distributed.init_process_group(
        device.collective, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT
    )
    import deepspeed  # after the environment: it looks for its accelerator when it is imported

    # Its shared-memory collectives are compiled at the first use: 20 s, or a crash without ninja.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(device.collective, auto_mpi_discovery=False, dist_init_required=False)
    _speak_of_problems_only(deepspeed.utils.logger)


def _speak_of_problems_only(logger: logging.Logger) -> None:
    """A worker's chatter would drown the run's progress line: no notes of DeepSpeed, no bars of loading."""
    logger.setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    # Raised by DeepSpeed's calls into torch, at every one of them.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


@functools.cache
def meeting_point(rank: int, world_size: int, host: str, port: int, served: bool) -> torch.distributed.Store:
    """The store that ranks meet by, which rank 0 serves at `host` only (left alone it listens on every interface).

    A process has one: who asks again gets the same.
    """
    if served:  # by torchrun, which may start the ranks again after a failure: each attempt has keys of its own
        shared = torch.distributed.TCPStore(host, port, is_master=False, timeout=COLLECTIVE_TIMEOUT)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return torch.distributed.PrefixStore(f"openrlhf_ext/{attempt}", shared)
    listener = socket.create_server((host, port)).detach() if rank == 0 else None
    return torch.distributed.TCPStore(
        host, port, world_size, rank == 0, timeout=COLLECTIVE_TIMEOUT, master_listen_fd=listener
    )


def exchange(store: torch.distributed.Store, name: str, rank: int, ranks: int, value: Any) -> list[Any]:
    """Every rank's value, as JSON carries it, before there is a process group. A name serves once."""
    store.set(f"{name}/{rank}", json.dumps(value))
    values = [json.loads(store.get(f"{name}/{other}")) for other in range(ranks)]
    read = store.add(f"{name}/read", 1)
    end = time.monotonic() + LEAVE_WITHIN_S
    while rank == 0 and read < ranks and time.monotonic() < end:  # the store goes with the process that serves it
        time.sleep(0.02)
        read = store.add(f"{name}/read", 0)
    return values
