"""What a Slurm job asks of a node: its address, a free port, whether RL's flags are right, and Ray.

node.py address INTERFACE PEER          either may be empty
node.py port HOST
node.py batch FLAGS...                  of openrlhf-ext rl
node.py start --head|--worker HOST:PORT GPUS cuda|cpu INTERFACE
node.py wait HOST:PORT NODES
"""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from contextlib import suppress
from typing import NoReturn

import psutil

WAIT_S = 300.0
SLOTS = 64
"""Logical CPUs of a node with GPUs: one comes with each, and processes take turns on the cores. Without GPUs a node has
as many as it would have GPUs, so that roles are spread over the nodes as they would be there."""
PORTS = range(20000, 32768)
"""Above those that Ray gives to its workers, below those that Linux gives to whoever connects somewhere."""


def address(interface: str, peer: str) -> str:
    """This node's address as the others reach it: by the interface, else where its way to a peer begins.

    What its name stands for is often a loopback address. A node without others keeps to itself.
    """
    if interface:
        found = [each.address for each in psutil.net_if_addrs().get(interface, []) if each.family == socket.AF_INET]
        if not found:
            fail(f"NETWORK {interface} is no interface of {socket.gethostname()} with an IPv4 address: {names()}.")
        return found[0]
    if not peer:
        return "127.0.0.1"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((peer, 9))  # which sends nothing
            own = probe.getsockname()[0]
    except OSError as error:
        fail(f"{socket.gethostname()} knows no way to {peer} ({error}): set NETWORK to an interface; {names()}.")
    if own.startswith("127."):
        fail(f"{socket.gethostname()} takes {peer} for itself ({own}): set NETWORK to an interface; {names()}.")
    return own


def names() -> str:
    return f"it has {', '.join(sorted(psutil.net_if_addrs()))}"


def fail(sentence: str) -> NoReturn:
    print(sentence, file=sys.stderr)
    sys.exit(2)


def port(host: str) -> int:
    """One that is free on that address now."""
    for number in random.sample(PORTS, 100):
        with suppress(OSError):
            socket.create_server((host, number)).close()
            return number
    fail(f"{socket.gethostname()} has no free port between {PORTS.start} and {PORTS.stop} at {host}.")


def batch(*flags: str) -> str:
    """The effective batch of RL in words. Flags that cannot be are said now, before Ray starts for them."""
    from openrlhf_ext.config import parse
    from openrlhf_ext.errors import ConfigError

    try:
        config = parse("rl", flags).config
    except ConfigError as error:
        fail(str(error))
    ranks = config.actor.num_nodes * config.actor.num_gpus_per_node
    whole, micro = config.train.batch_size, config.train.micro_batch_size
    if config.train.dynamic_batch_enable:
        return f"effective batch {whole} over {ranks} ranks, by their tokens"
    return f"effective batch {micro} x {whole // (micro * ranks)} x {ranks} = {whole}"


def start(kind: str, cluster: str, gpus: str, device: str, interface: str) -> None:
    """Become `ray start --block` of this node. Nodes may be shared, so no port is Ray's default."""
    host, _, number = cluster.rpartition(":")
    own = host if kind == "--head" else address(interface, host)
    where = ["--head", f"--port={number}"] if kind == "--head" else [f"--address={cluster}"]
    ports = ("dashboard-agent-listen-port", "ray-client-server-port", "runtime-env-agent-port", "metrics-export-port")
    words = [
        "ray", "start", *where, "--block", f"--node-ip-address={own}",
        f"--num-cpus={gpus if device == 'cpu' else SLOTS}", f"--num-gpus={0 if device == 'cpu' else gpus}",
        "--disable-usage-stats", *(f"--{name}={port(own)}" for name in ports),
    ]  # fmt: skip
    if kind == "--head":
        words += ["--include-dashboard=false"]
    os.execv(sys.executable, [sys.executable, "-m", "ray.scripts.scripts", *words[1:]])


def wait(cluster: str, nodes: str) -> None:
    """Return once so many nodes are in the cluster, and say who is there."""
    import ray

    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            host, _, number = cluster.rpartition(":")
            socket.create_connection((host, int(number)), timeout=2).close()
            break
        except OSError:
            time.sleep(0.5)
    else:
        sys.exit(f"No Ray answers at {cluster} within {WAIT_S:g} s: see the logs/ray-*.log of this job.")
    ray.init(address=cluster, log_to_driver=False, logging_level="ERROR")
    alive: list[str] = []
    while time.monotonic() < end:
        alive = sorted(node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"])
        if len(alive) >= int(nodes):
            print(f"Ray has {', '.join(alive)}", flush=True)
            return
        time.sleep(0.5)
    sys.exit(f"Ray has {', '.join(alive)} after {WAIT_S:g} s, and {nodes} nodes are asked for: see logs/ray-*.log.")


def main() -> None:
    command, *words = sys.argv[1:]
    answers = {"address": address, "port": port, "batch": batch, "start": start, "wait": wait}
    answer = answers[command](*words)  # type: ignore[operator]
    if answer is not None:
        print(answer)


if __name__ == "__main__":
    main()
