"""What a Slurm job asks of one node for Ray: its address, a free port, a Ray process, the others to be there.

ray_node.py address [INTERFACE]
ray_node.py port HOST
ray_node.py start --head|--worker HOST:PORT GPUS cuda|cpu [INTERFACE]
ray_node.py wait HOST:PORT NODES
"""

from __future__ import annotations

import os
import socket
import sys
import time

import psutil

WAIT_S = 300.0
SLOTS = 64
"""Logical CPUs of a node with GPUs: one comes with each, and processes take turns on the cores. Without GPUs a node has
as many as it would have GPUs, so that roles are spread over the nodes as they would be there."""


def address(interface: str | None = None) -> str:
    """This node's address as the others reach it."""
    if interface is None:
        return socket.gethostbyname(socket.gethostname())
    found = [each.address for each in psutil.net_if_addrs().get(interface, []) if each.family == socket.AF_INET]
    if not found:
        sys.exit(f"NETWORK {interface} is no interface of {socket.gethostname()} with an IPv4 address: {names()}.")
    return found[0]


def names() -> str:
    return f"it has {', '.join(sorted(psutil.net_if_addrs()))}"


def port(host: str) -> int:
    """One that is free on that address now."""
    with socket.create_server((host, 0)) as listener:
        return listener.getsockname()[1]


def start(kind: str, cluster: str, gpus: str, device: str, interface: str | None = None) -> None:
    """Become `ray start --block` of this node. Nodes may be shared, so no port is Ray's default."""
    own = address(interface)
    where = ["--head", f"--port={cluster.rpartition(':')[2]}"] if kind == "--head" else [f"--address={cluster}"]
    words = [
        "ray", "start", *where, "--block", f"--node-ip-address={own}",
        f"--num-cpus={gpus if device == 'cpu' else SLOTS}", f"--num-gpus={0 if device == 'cpu' else gpus}",
        "--disable-usage-stats",
        f"--dashboard-agent-listen-port={port(own)}", f"--ray-client-server-port={port(own)}",
        f"--runtime-env-agent-port={port(own)}", f"--metrics-export-port={port(own)}",
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
    answers = {"address": address, "port": port, "start": start, "wait": wait}
    answer = answers[command](*words)  # type: ignore[operator]
    if answer is not None:
        print(answer)


if __name__ == "__main__":
    main()
