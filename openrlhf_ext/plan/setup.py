"""What a command's flags start, as values: its models with their ranks and largest micro-batches, and its engines.

Nothing is decided here that the commands do not do: `cli.specs`, `cli.rl_roles` and `cluster.build` are restated
without torch, and tests/unit/cli/test_plan_matches_roles.py holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from openrlhf_ext.plan.setup_rl import rl_setup
from openrlhf_ext.plan.setup_supervised import supervised_setup
from openrlhf_ext.plan.types import DataSize, Hardware, Setup


def setup_of(
    command: Literal["sft", "rm", "dpo", "rl"],
    config: Any,
    explicit: Iterable[str],
    hardware: Hardware,
    data: DataSize,
) -> Setup:
    """The setup of a checked config tree; `explicit` are the paths that flags or files set.

    Raises DataError for a model whose shape cannot be found.
    """
    if command == "rl":
        return rl_setup(config, frozenset(explicit), hardware, data)
    return supervised_setup(command, config, hardware, data)
