"""A step's rollouts on their way to the process that writes them, which imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

from openrlhf_ext.batch.packed import PackedRollouts
from openrlhf_ext.track.rollouts import RecordedStep, write_rollouts
from openrlhf_ext.types import FailedGroup, Prompt, Rollout, RolloutGroup, Score, ScoredRollout, ScoreFailure

_of_score = attrgetter(*(field.name for field in fields(Score)))
PackedScores = tuple[Prompt, tuple[tuple[Any, ...], ...]]
"""A group without its rollouts: the scores' fields, which are pickled sooner than themselves."""


@dataclass(frozen=True, slots=True)
class PackedStep:
    """A RecordedStep whose rollouts are packed, in the order in which the groups name them."""

    epoch: int
    rollouts: PackedRollouts
    groups: tuple[PackedScores, ...]
    failed: tuple[tuple[Prompt, int, ScoreFailure], ...]
    filtered: tuple[PackedScores, ...]

    @classmethod
    def of(cls, step: RecordedStep) -> PackedStep:
        members = (member.rollout for group in step.groups for member in group.members)
        lost = (rollout for group in step.failed for rollout in group.rollouts)
        left = (member.rollout for group in step.filtered for member in group.members)
        return cls(
            step.epoch,
            PackedRollouts.of([*members, *lost, *left]),
            tuple(map(_scores, step.groups)),
            tuple((group.prompt, len(group.rollouts), group.failure) for group in step.failed),
            tuple(map(_scores, step.filtered)),
        )

    def unpacked(self) -> RecordedStep:
        rollouts = iter(self.rollouts)
        return RecordedStep(
            self.epoch,
            groups=tuple(_group(rollouts, *each) for each in self.groups),
            failed=tuple(
                FailedGroup(prompt, tuple(islice(rollouts, count)), failure) for prompt, count, failure in self.failed
            ),
            filtered=tuple(_group(rollouts, *each) for each in self.filtered),
        )


def _scores(group: RolloutGroup) -> PackedScores:
    return group.prompt, tuple(_of_score(member.score) for member in group.members)


def _group(rollouts: Iterator[Rollout], prompt: Prompt, scores: tuple[tuple[Any, ...], ...]) -> RolloutGroup:
    return RolloutGroup(prompt, tuple(ScoredRollout(next(rollouts), Score(*score)) for score in scores))


class PackedWriter:
    """Of a process that does nothing else."""

    def write(self, folder: Path, step: int, packed: PackedStep) -> None:
        write_rollouts(folder, step, packed.unpacked())
