"""What a plan is made for: the card that is named, a preset's, or what this machine has. No GPU is touched."""

from __future__ import annotations

import os
from pathlib import Path

from openrlhf_ext.config import Parsed, RLConfig, get
from openrlhf_ext.config.plan_request import PlanRequest
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.cards import card_named, card_of_size
from openrlhf_ext.plan.types import Card, Hardware

NVIDIA = Path("/proc/driver/nvidia/gpus")
"""The driver's own list: a file for each GPU, with its model's name. Reading it makes no context."""


def hardware_of(command: str, parsed: Parsed, request: PlanRequest) -> Hardware:
    """Raises ConfigError for flags at odds with each other, or a card that is not known."""
    device, config = request.device, parsed.config
    on_cpu = config.device.type == "cpu"
    if device.gpu is not None and device.memory_gb is not None:
        raise ConfigError("--device.gpu with --device.memory_gb: both say how much memory a GPU has; leave one out.")
    named = device.gpu is not None or device.memory_gb is not None
    if on_cpu and (named or device.count is not None):
        raise ConfigError("--device.type cpu with a GPU's name, size or number: a plan is for one of the two.")
    host = int(device.host_gb * 1e9) if device.host_gb is not None else None
    nodes = request.nodes or asked_nodes(parsed)
    if named:
        card = card_named(device.gpu) if device.gpu else card_of_size(device.memory_gb or 0.0)
        return Hardware(card, device.count or asked_count(parsed), nodes, host)
    if parsed.preset is not None and parsed.preset.card is not None and not on_cpu:
        return Hardware(card_named(parsed.preset.card), device.count or parsed.preset.count, nodes, host)
    here = [] if on_cpu else cards_of_this_machine()
    if not here and (device.count is not None or config.device.type not in ("auto", "cpu")):
        raise ConfigError("there is no GPU here to plan for: name one with --device.gpu or --device.memory_gb.")
    host = host or host_bytes()
    if not here:
        return Hardware(None, 0, nodes, host)
    return Hardware(min(here, key=lambda card: card.bytes), device.count or len(here), nodes, host)


def asked_count(parsed: Parsed) -> int:
    """GPUs of a machine that the command asks for by itself: 1 where it does not say."""
    if not isinstance(parsed.config, RLConfig):
        return parsed.config.model.num_gpus_per_node
    asked = [
        get(parsed.config, path)
        for role in ("actor", "ref", "critic", "reward", "student")
        if (path := f"{role}.num_gpus_per_node") in parsed.explicit
    ]
    if parsed.config.train.colocate_all:
        return max(asked, default=1)
    # Roles with GPUs of their own, and the engines' beside them.
    engines = parsed.config.vllm.num_engines * parsed.config.vllm.tensor_parallel_size
    return sum(asked) + engines if asked else 1


def asked_nodes(parsed: Parsed) -> int:
    section = parsed.config.actor if isinstance(parsed.config, RLConfig) else parsed.config.model
    return section.num_nodes


def ranks_as_flags(command: str, parsed: Parsed, request: PlanRequest) -> list[str]:
    """The ranks that follow from --device.count and --nodes, as flags; ConfigError where the command asks for others.

    In `rl` a default follows the GPUs that are there by itself; only the number of machines is handed on.
    """
    wanted = {"num_nodes": request.nodes}
    if isinstance(parsed.config, RLConfig):
        roles = ["actor", "ref", "critic", "reward", "student"] if parsed.config.train.colocate_all else ["actor"]
    else:
        roles, wanted["num_gpus_per_node"] = ["model"], request.device.count
    flags: list[str] = []
    for role in roles:
        for name, value in wanted.items():
            path = f"{role}.{name}"
            if value is None or get(parsed.config, path) == value:
                continue
            if path in parsed.explicit and parsed.preset is None:
                if isinstance(parsed.config, RLConfig) and get(parsed.config, path) < value:
                    continue  # a role need not be on all of the machines
                own = "--nodes" if name == "num_nodes" else "--device.count"
                raise ConfigError(f"--{path} {get(parsed.config, path)} with {own} {value}: leave one of the two out.")
            if path in parsed.explicit or role in ("actor", "model"):
                flags += [f"--{path}", str(value)]
    return flags


def cards_of_this_machine() -> list[Card]:
    """The GPUs that the driver lists and CUDA_VISIBLE_DEVICES leaves visible."""
    if not NVIDIA.is_dir():
        return []
    files = sorted(NVIDIA.glob("*/information"))
    names = [
        line.partition(":")[2].strip()
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith("Model:")
    ]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = names[: len([item for item in visible.split(",") if item.strip()])]
    return [card_named(name) for name in names]


def host_bytes() -> int | None:
    """Memory of this machine, or of the control group that this process is confined to."""
    limits = []
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text))
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        total = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemTotal"))
        limits.append(int(total.split()[1]) * 1024)
    return min(limits, default=None)
