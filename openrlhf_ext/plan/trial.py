"""Plans of a command with some flags changed: each is made once, and counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from openrlhf_ext.config import replaced
from openrlhf_ext.config.rules import broken_rules
from openrlhf_ext.errors import UserError
from openrlhf_ext.plan.memory import memory_of
from openrlhf_ext.plan.setup import setup_of
from openrlhf_ext.plan.types import DataSize, Hardware, Memory, Setup

Command = Literal["sft", "rm", "dpo", "rl"]
Values = Mapping[str, Any]
"""Flags by path, and what they are changed to."""
Excess = tuple[int, int]
"""What cannot be placed at all, and bytes above the limits, over all phases and pools: less is nearer to fitting."""


@dataclass(frozen=True, slots=True)
class Trial:
    setup: Setup
    memory: Memory
    excess: Excess

    @property
    def fits(self) -> bool:
        return self.excess == (0, 0)


@dataclass(slots=True)
class Trials:
    """`reserve`: the part of every limit that is to stay free."""

    command: Command
    config: Any
    explicit: frozenset[str]
    hardware: Hardware
    data: DataSize
    reserve: float = 0.0
    made: dict[frozenset[tuple[str, Any]], Trial | None] = field(default_factory=dict)

    def of(self, values: Values) -> Trial | None:
        """None where the flags are then at odds with each other, or with the model."""
        key = frozenset(values.items())
        if key not in self.made:
            self.made[key] = self._make(values)
        return self.made[key]

    def _make(self, values: Values) -> Trial | None:
        config, explicit = replaced(self.config, values), self.explicit | values.keys()
        if values and any(not item.plannable for item in broken_rules(config, explicit)):
            return None
        hardware = self._with_gpus_for(values)
        try:
            setup = setup_of(self.command, config, explicit, hardware, self.data)
            memory = memory_of(setup)
        except UserError:
            if values:
                return None
            raise
        return Trial(setup, memory, excess_of(memory, self.reserve))

    def _with_gpus_for(self, values: Values) -> Hardware:
        """A change of the number of GPUs is one of the machine."""
        wanted = [value for path, value in values.items() if path.endswith("num_gpus_per_node")]
        return replace(self.hardware, count=max([self.hardware.count, *wanted]))


def excess_of(memory: Memory, reserve: float = 0.0) -> Excess:
    above = 0
    if memory.gpu_limit is not None:
        limit = int(memory.gpu_limit * (1 - reserve))
        above += sum(max(0, peak.gpu_bytes - limit) for peak in memory.peaks)
    if memory.host_limit is not None:
        above += max(0, memory.host_peak - int(memory.host_limit * (1 - reserve)))
    return len(memory.misfits), above
