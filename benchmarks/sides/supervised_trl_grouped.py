"""TRL's side once more, with the setting that makes its Trainer batch rows of like length."""

from __future__ import annotations

from sides.gate import Gate
from sides.supervised_rows import SupervisedWorkload
from sides.supervised_trl import train


def serve(workload: SupervisedWorkload, gate: Gate) -> None:
    # What it groups by is a column that no model reads, and would be removed before it is looked at.
    train(workload, gate, train_sampling_strategy="group_by_length", remove_unused_columns=False)
