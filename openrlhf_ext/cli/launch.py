"""Ranks that somebody else started: `torchrun` or `srun` runs this very command once for each of them.

Every process then runs the same loop on its own part of each step, and rank 0 speaks and writes for all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openrlhf_ext.config import Parsed, parse
from openrlhf_ext.cores import threads_of_rank
from openrlhf_ext.errors import ConfigError

FIRST_PORT, PORTS = 20000, 12768
"""Where ranks of a bare `srun` meet, without MASTER_PORT: a port that the job's number gives, below those that Linux
gives to whoever connects somewhere. A job script looks for a free one."""
NODES, PER_NODE = "model.num_nodes", "model.num_gpus_per_node"


@dataclass(frozen=True, slots=True)
class Launch:
    """This process among the ranks, and where they meet. `served`: the launcher keeps the store that they meet by."""

    rank: int
    ranks: int
    local_rank: int
    per_node: int
    host: str
    port: int
    served: bool


def launch_of(environ: Mapping[str, str] = os.environ) -> Launch | None:
    """What the launcher's variables say; None where this process is the only one.

    Raises ConfigError where they contradict each other.
    """
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"} <= environ.keys():
        ranks = _number(environ, "WORLD_SIZE")
        launch = Launch(
            rank=_number(environ, "RANK"),
            ranks=ranks,
            local_rank=_number(environ, "LOCAL_RANK"),
            per_node=_number(environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else ranks,
            host=environ["MASTER_ADDR"],
            port=_number(environ, "MASTER_PORT"),
            served=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
    elif {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"} <= environ.keys():  # of `srun`; a batch script alone has no step
        launch = _by_slurm(environ)
    else:
        return None
    if launch.ranks % launch.per_node:
        raise ConfigError(
            f"the launcher started {launch.ranks} ranks with {launch.per_node} on this machine: start as many on each."
        )
    return launch if launch.ranks > 1 else None


def _by_slurm(environ: Mapping[str, str]) -> Launch:
    ranks = _number(environ, "SLURM_STEP_NUM_TASKS")
    nodes = _number(environ, "SLURM_STEP_NUM_NODES") if "SLURM_STEP_NUM_NODES" in environ else 1
    job = _number(environ, "SLURM_JOB_ID") if "SLURM_JOB_ID" in environ else 0
    return Launch(
        rank=_number(environ, "SLURM_PROCID"),
        ranks=ranks,
        local_rank=_number(environ, "SLURM_LOCALID"),
        per_node=max(ranks // nodes, 1),
        host=environ.get("MASTER_ADDR") or first_node(environ.get("SLURM_STEP_NODELIST", "127.0.0.1")),
        port=_number(environ, "MASTER_PORT") if "MASTER_PORT" in environ else FIRST_PORT + job % PORTS,
        served=False,
    )


def first_node(nodes: str) -> str:
    """Of Slurm's list, which Slurm itself takes apart: `rack[1-2]n[01-04]` is rack1n01 and others.

    Raises ConfigError where it is not there to do so.
    """
    if "[" not in nodes:
        return nodes.split(",")[0]
    try:
        named = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"the first of the nodes {nodes} is not known without scontrol ({error}): set MASTER_ADDR to the address "
            "of rank 0's node."
        ) from error
    return named.stdout.split()[0]


def parse_launched(command: str, argv: Sequence[str]) -> tuple[Parsed, Launch | None]:
    """The config of a supervised command, with the launcher's number of ranks where the flags give none.

    Raises ConfigError where they give another.
    """
    launch, parsed = launch_of(), parse(command, argv)
    if launch is not None:
        # Before torch is imported: ranks of one machine share its cores. torchrun sets it itself.
        os.environ.setdefault("OMP_NUM_THREADS", str(threads_of_rank(launch.per_node)))
        nodes, per_node = parsed.config.model.num_nodes, parsed.config.model.num_gpus_per_node
        if not {NODES, PER_NODE} & parsed.explicit:
            nodes, per_node = launch.ranks // launch.per_node, launch.per_node
            parsed = parse(command, [*argv, f"--{NODES}", str(nodes), f"--{PER_NODE}", str(per_node)])
        if nodes * per_node != launch.ranks:
            raise ConfigError(
                f"--{NODES} {nodes} x --{PER_NODE} {per_node}: the launcher started {launch.ranks} ranks; give as "
                "many, or leave the flags out."
            )
    if launch is None or launch.rank == 0:
        for note in parsed.notes:
            print(note, file=sys.stderr)
    return parsed, launch


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not text.isdigit():
        raise ConfigError(f"the launcher's variable {name} is {text!r}, which is no number: unset it, or correct it.")
    return int(text)
