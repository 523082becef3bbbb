"""What is allowed and probably not meant, found in the flags before anything loads.

What cannot work is an error elsewhere (`config.rules`); a trap is no error, and a run with one starts.
"""

from __future__ import annotations

from openrlhf_ext.plan.traps.algorithm import ALGORITHM
from openrlhf_ext.plan.traps.case import Case, Trap
from openrlhf_ext.plan.traps.learning import LEARNING
from openrlhf_ext.plan.traps.memory import MEMORY
from openrlhf_ext.plan.traps.models import MODELS
from openrlhf_ext.plan.traps.placement import PLACEMENT
from openrlhf_ext.plan.traps.schedule import SCHEDULE
from openrlhf_ext.plan.types import Arithmetic, Memory, Setup, Warning

TRAPS: tuple[Trap, ...] = (*SCHEDULE, *LEARNING, *MODELS, *ALGORITHM, *PLACEMENT, *MEMORY)

__all__ = ["TRAPS", "code_of", "warnings_of"]


def warnings_of(setup: Setup, explicit: frozenset[str], arithmetic: Arithmetic, memory: Memory) -> tuple[Warning, ...]:
    """Every trap that this run is in. `explicit`: the paths that the user set."""
    case = Case(setup, explicit, arithmetic, memory)
    return tuple(Warning(code_of(trap), text) for trap in TRAPS if (text := trap(case)) is not None)


def code_of(trap: Trap) -> str:
    return trap.__name__.replace("_", "-")
