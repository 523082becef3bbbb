"""Which device a run is on, what it can do, and what its worker processes need to know of it."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from openrlhf_ext.errors import ConfigError, ResourceError

logger = logging.getLogger(__name__)

DeviceKind = Literal["cpu", "cuda"]
Capability = Literal["sleep", "ipc", "flash_attention", "varlen", "4bit", "8bit", "bf16"]
T = TypeVar("T")

# Asked of a child process: the answer needs a context on every GPU, which the driver must not hold.
_PROBE = (
    "import torch\n"
    "for i in range(torch.cuda.device_count()):\n"
    "    gpu = torch.cuda.get_device_properties(i)\n"
    "    print(gpu.major, gpu.minor, gpu.total_memory, gpu.name)"
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """What one GPU says of itself: its memory in bytes, and its compute capability."""

    name: str
    bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Device:
    """Where models live, as a value that can be pickled to every process of a run.

    `count` is the number of GPUs this machine shows (0 for the CPU). Capabilities: `sleep` (model
    state can leave the device between phases), `ipc` (tensors can be shared between processes by
    handle), `flash_attention`, `varlen` (torch's own kernel for packed rows), `4bit` and `8bit`
    (quantised base models) and `bf16`.
    """

    kind: DeviceKind
    count: int
    capabilities: frozenset[Capability]

    def can(self, capability: Capability) -> bool:
        return capability in self.capabilities

    @property
    def collective(self) -> str:
        """The torch.distributed backend of this device."""
        return "nccl" if self.kind == "cuda" else "gloo"

    @property
    def ordered_collectives(self) -> bool:
        """Whether collectives end in the order in which they began: those of a GPU's stream do."""
        return self.kind == "cuda"

    def torch_device(self, local_rank: int = 0) -> torch.device:
        """`local_rank` counts the devices this process sees, which a scheduler may have cut to one."""
        return torch.device("cuda", local_rank) if self.kind == "cuda" else torch.device("cpu")

    def environment(self) -> dict[str, str]:
        """Variables that a worker process needs before it imports torch or DeepSpeed."""
        if self.kind == "cuda":
            return {"DS_ACCELERATOR": "cuda"}
        return {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}

    @property
    def interface_variable(self) -> str:
        """The variable that names the network interface of this device's collectives."""
        return "NCCL_SOCKET_IFNAME" if self.kind == "cuda" else "GLOO_SOCKET_IFNAME"

    def select(self, local_rank: int = 0) -> torch.device:
        """Make the device of this rank the current one of the process, and return it."""
        device = self.torch_device(local_rank)
        if self.kind == "cuda":
            torch.cuda.set_device(device)
        return device

    def current(self) -> torch.device:
        """The device that `select` made current."""
        return torch.device("cuda", torch.cuda.current_device()) if self.kind == "cuda" else torch.device("cpu")

    def make_deterministic(self) -> None:
        """Same inputs, same bits: before the first computation of the process."""
        # cuBLAS is deterministic only with a fixed workspace, read when its context is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)

    def empty_cache(self) -> None:
        if self.kind == "cuda":
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        if self.kind == "cuda":
            torch.cuda.synchronize()


def choose_device(requested: Literal["auto", "cpu", "cuda"] = "auto") -> Device:
    """The device of this run. No context is made on a GPU; a CPU choice hides GPUs from this process for good.

    Raises ResourceError where a GPU is asked for and none can be used, ConfigError for another word.
    """
    if requested not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device.type {requested} is unknown: give auto, cpu or cuda.")
    count = torch.cuda.device_count() if requested != "cpu" else 0
    if requested == "cuda" and count == 0:
        build = "" if torch.version.cuda else f", and torch {torch.__version__} is a build without CUDA"
        raise ResourceError(
            f"--device.type cuda was asked for, but no GPU is visible here{build}: "
            "give --device.type cpu, or run where nvidia-smi lists a GPU (see CUDA_VISIBLE_DEVICES)."
        )
    device = Device("cuda", count, _gpu_capabilities()) if count else Device("cpu", 0, _cpu_capabilities())
    os.environ.update(device.environment())
    return device


def honour(device: Device, capability: Capability, value: T, instead: T, *, explicit: bool, flag: str) -> T:
    """`value` where the device has the capability it needs; else `instead` for a default, ConfigError if asked for."""
    if device.can(capability):
        return value
    if explicit:
        raise ConfigError(f"{flag} {value} needs {capability}, which this {device.kind} lacks: give {flag} {instead}.")
    _say_once(f"{flag}: the default {value} needs {capability}, which this {device.kind} lacks; using {instead}.")
    return instead


def attention(device: Device, value: str, *, explicit: bool, flag: str = "--ds.attn_implementation") -> str:
    """The attention implementation to load models with: flash attention falls back to sdpa."""
    if value == "torch_varlen":
        return honour(device, "varlen", value, "sdpa", explicit=explicit, flag=flag)
    if not value.startswith("flash_attention"):
        return value
    return honour(device, "flash_attention", value, "sdpa", explicit=explicit, flag=flag)


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)


def _cpu_capabilities() -> frozenset[Capability]:
    found: set[Capability] = {"bf16"}
    if importlib.util.find_spec("bitsandbytes"):
        found |= {"4bit", "8bit"}
    return frozenset(found)


def _gpu_capabilities() -> frozenset[Capability]:
    found: set[Capability] = {"sleep", "ipc"}
    if importlib.util.find_spec("bitsandbytes"):
        found |= {"4bit", "8bit"}
    if min(gpu.capability for gpu in visible_gpus()) >= (8, 0):  # Ampere: the first with bf16 and FlashAttention-2
        found |= {"bf16", "varlen"}
        if importlib.util.find_spec("flash_attn"):
            found.add("flash_attention")
    return frozenset(found)


@functools.cache
def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs that this process may use. Raises ResourceError where they do not answer."""
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    if probe.returncode:
        reason = probe.stderr.strip().splitlines()[-1] if probe.stderr.strip() else f"exit code {probe.returncode}"
        raise ResourceError(
            f"The GPUs that are visible here cannot be used ({reason}): mend the driver, or give --device.type cpu."
        )
    lines = (line.split(maxsplit=3) for line in probe.stdout.splitlines())
    return tuple(Gpu(name, int(size), (int(major), int(minor))) for major, minor, size, name in lines)
