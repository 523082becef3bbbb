"""What a trap looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openrlhf_ext.plan.types import Arithmetic, Card, DataSize, Memory, ModelRun, Setup


@dataclass(frozen=True, slots=True)
class Case:
    """A run that is planned. `explicit`: the paths that the user set."""

    setup: Setup
    explicit: frozenset[str]
    arithmetic: Arithmetic
    memory: Memory

    @property
    def config(self) -> Any:
        return self.setup.config

    @property
    def rl(self) -> bool:
        return self.setup.command == "rl"

    @property
    def data(self) -> DataSize:
        return self.setup.data

    @property
    def card(self) -> Card | None:
        return self.setup.hardware.card

    @property
    def section(self) -> str:
        """Of the trained model's path and checkpointing flags."""
        return "actor" if self.rl else "model"

    @property
    def trained(self) -> ModelRun:
        """The policy, or the one model of a supervised command."""
        return next(model for model in self.setup.models if model.role in ("policy", "model"))

    @property
    def optimizer(self) -> Any:
        """The section with the trained model's learning rate."""
        return self.config.actor if self.rl else self.config

    @property
    def optimizer_flag(self) -> str:
        """What its flags begin with."""
        return "--actor." if self.rl else "--"

    @property
    def answers_per_row(self) -> int:
        return self.config.rollout.n_samples_per_prompt if self.rl else 1


Trap = Callable[[Case], str | None]
"""Answers with what is wrong and what to give instead, or with None. Its name is the warning's code."""


def gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
