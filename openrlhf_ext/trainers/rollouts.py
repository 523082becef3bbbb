"""GENERATE and SCORE: from the prompts of one step to its scored groups, in time or ahead of it."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from openrlhf_ext.data.source import PromptSource
from openrlhf_ext.ports import Generator, RewardFn
from openrlhf_ext.track.phases import PhaseClock
from openrlhf_ext.track.progress import waiting
from openrlhf_ext.track.rollouts import RecordedStep, read_step, rollout_path, write_rollouts
from openrlhf_ext.trainers.background import Background
from openrlhf_ext.trainers.settings import RLSettings
from openrlhf_ext.types import (
    FailedGroup,
    Prompt,
    Report,
    Rollout,
    RolloutGroup,
    Sampling,
    ScoredRollout,
    ScoreFailure,
    derive_seed,
)

FOLDER = "rollouts"
"""Of a checkpoint: the rollouts that are ready and not yet trained on."""
LEFT_BEHIND_AFTER = 30.0
"""Seconds that a run which has failed waits for its background thread."""


@dataclass(frozen=True, slots=True)
class StepRollouts:
    """What became of the prompts that one step consumed."""

    recorded: RecordedStep
    last: bool  # the prompts are used up
    costs: Report = field(default_factory=dict)  # of scoring; those of a round are with its first step

    @property
    def groups(self) -> tuple[RolloutGroup, ...]:
        """Those that are trained on."""
        return self.recorded.groups

    @property
    def rollouts(self) -> list[Rollout]:
        """Those that are trained on, group by group."""
        return [member.rollout for group in self.groups for member in group.members]

    @property
    def tokens_by_phase(self) -> dict[str, float]:
        """How many tokens the phases that train work on: whole sequences."""
        trained = sum(len(rollout.token_ids) for rollout in self.rollouts)
        return {"infer": trained, "update": trained}

    def staleness(self, version: int) -> int:
        """How many versions ago the oldest token was sampled, where `version` is about to be trained."""
        return max((version - rollout.versions[0] for rollout in self.rollouts), default=0)


class RolloutSource:
    """Samples and scores the rollouts of each step; the draws depend on (run seed, step) and nothing before.

    A round of prompts is generated at once and feeds one step or more. With filtering, groups that are filtered out
    or cannot be scored are replaced, one prompt for one, until the round is full or the epoch's prompts are used up.

    With `max_lag` the rollouts of that many steps beyond the present one are drawn in one background thread, which
    alone then touches prompts, generator and reward; after `settle`, and until the next `next`, it is at rest. What
    goes wrong in it is raised by the `next` of the step it belongs to. Leaving the context ends the thread.
    """

    def __init__(
        self, prompts: PromptSource, generator: Generator, reward: RewardFn, settings: RLSettings, clock: PhaseClock
    ) -> None:
        self._prompts = prompts
        self._generator = generator
        self._reward = reward
        self._settings = settings
        self._clock = clock
        self._ready: deque[StepRollouts] = deque()  # of a round that feeds several steps
        self._in_flight: deque[Future[StepRollouts | None]] = deque()
        self._worker = Background("rollouts") if settings.max_lag else None
        self._stopped = threading.Event()
        self._bound = settings.max_lag + prompts.round_size // prompts.batch_size - 1

    def __enter__(self) -> RolloutSource:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._stopped.set()
        if self._worker is not None:
            with waiting("the rollouts in flight to end"):
                # After an error engines may wait for weights that never come: the run ends without them.
                self._worker.close(None if error is None else LEFT_BEHIND_AFTER)

    def next(self, step: int) -> StepRollouts | None:
        """The rollouts of this step; None when the prompts are used up."""
        if self._worker is None:
            sampled = self._draw(step)
        else:
            while len(self._in_flight) <= self._settings.max_lag:
                self._in_flight.append(self._worker.submit(self._draw, step + len(self._in_flight)))
            with self._clock("wait"):
                sampled = self._in_flight.popleft().result()
        if sampled is not None:
            staleness = sampled.staleness(self._generator.version)
            assert staleness <= self._bound, f"rollouts {staleness} versions old, and {self._bound} are allowed"
        return sampled

    def settle(self) -> None:
        """Wait until nothing is being drawn."""
        if not all(drawn.done() for drawn in self._in_flight):
            with self._clock("wait"):
                wait(self._in_flight)

    # --- checkpoints, while settled ---------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Where the prompts stand, and how many steps' rollouts are ready, as JSON values."""
        return {"prompts": self._prompts.state(), "ready": len(self._all_ready())}

    def save(self, folder: Path, step: int) -> None:
        """Write the rollouts that are ready for the steps after this one."""
        for later, sampled in enumerate(self._all_ready(), step + 1):
            write_rollouts(folder / FOLDER, later, sampled.recorded)

    def restore(self, state: Mapping[str, Any], folder: Path, step: int, version: int) -> None:
        """Go on after this step as if never interrupted. Raises DataError where the prompts are others."""
        self._prompts.restore(state["prompts"])
        steps = range(step + 1, step + 1 + state["ready"])
        for later in steps:
            recorded = read_step(rollout_path(folder / FOLDER, later), self._prompts.by_id)
            last = later == steps[-1] and self._prompts.exhausted
            self._ready.append(StepRollouts(recorded, last))
            # They keep their age, also where this run allows less lag than the one that sampled them.
            self._bound = max(self._bound, self._ready[-1].staleness(version + later - steps[0]))

    def _all_ready(self) -> list[StepRollouts]:
        drawn = (future.result() for future in self._in_flight if future.exception() is None)
        return [sampled for sampled in chain(drawn, self._ready) if sampled is not None]

    # --- drawing, in the background with max_lag --------------------------------------------

    def _draw(self, step: int) -> StepRollouts | None:
        if not self._ready:
            before = self._prompts.state()
            try:
                self._ready.extend(self._round(step))
            except BaseException:
                self._stopped.set()  # later steps are not to be drawn instead
                self._prompts.restore(before)  # so that a checkpoint of an earlier step is whole
                raise
        return self._ready.popleft() if self._ready else None

    def _round(self, step: int) -> list[StepRollouts]:
        """The steps that the next round of prompts feeds, this one and those after it."""
        drawn = self._prompts.next_batch()
        if drawn is None:
            return []
        sampling = replace(self._settings.sampling, seed=derive_seed(self._settings.seed, "rollout", step))
        outcomes = self._sampled(drawn.prompts, sampling)
        while more := self._prompts.take(len(drawn.prompts) - sum(map(self._fills, outcomes))).prompts:
            outcomes += self._sampled(more, sampling)
        parts, costs = list(self._cut(outcomes)), self._reward.take_report()
        return [
            StepRollouts(
                self._recorded(drawn.epoch, part),
                last=part is parts[-1] and self._prompts.exhausted,
                costs=costs if part is parts[0] else {},
            )
            for part in parts
        ]

    def _sampled(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[RolloutGroup | FailedGroup]:
        self._go_on()
        with self._clock("generate"):
            rollouts = self._generator.generate(prompts, sampling)
            self._clock.count(sum(rollout.response_length for siblings in rollouts for rollout in siblings))
        assert all(_complete(siblings, sampling.n) for siblings in rollouts), "n rollouts of every prompt"
        self._go_on()
        with self._clock("score"):
            results = self._reward.score(list(zip(prompts, rollouts, strict=True)))
        outcomes: list[RolloutGroup | FailedGroup] = []
        for prompt, siblings, result in zip(prompts, rollouts, results, strict=True):
            if isinstance(result, ScoreFailure):
                outcomes.append(FailedGroup(prompt, tuple(siblings), result))
            else:
                members = tuple(ScoredRollout(*pair) for pair in zip(siblings, result, strict=True))
                outcomes.append(RolloutGroup(prompt, members))
        return outcomes

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise CancelledError

    def _fills(self, outcome: RolloutGroup | FailedGroup) -> bool:
        """Whether it has a place in its step, and so needs no replacement."""
        if isinstance(outcome, FailedGroup):
            return self._settings.filter_range is None
        return self._settings.keeps(outcome)

    def _cut(self, outcomes: Iterable[RolloutGroup | FailedGroup]) -> Iterable[list[RolloutGroup | FailedGroup]]:
        """In parts with as many places as a step has prompts; what fills no place goes with those before it."""
        part: list[RolloutGroup | FailedGroup] = []
        filled = 0
        for outcome in outcomes:
            fills = self._fills(outcome)
            if fills and filled == self._prompts.batch_size:
                yield part
                part, filled = [], 0
            part.append(outcome)
            filled += fills
        yield part

    def _recorded(self, epoch: int, outcomes: Sequence[RolloutGroup | FailedGroup]) -> RecordedStep:
        scored = [outcome for outcome in outcomes if isinstance(outcome, RolloutGroup)]
        return RecordedStep(
            epoch,
            groups=tuple(group for group in scored if self._settings.keeps(group)),
            failed=tuple(outcome for outcome in outcomes if isinstance(outcome, FailedGroup)),
            filtered=tuple(group for group in scored if not self._settings.keeps(group)),
        )


def _complete(siblings: Sequence[Rollout], n: int) -> bool:
    """Whether these are n samples of a prompt. In a game they are of n episodes, each with at most one for a role:
    who did not speak has none.
    """
    if len({rollout.sample for rollout in siblings}) != len(siblings):
        return False
    of_role = Counter(rollout.role for rollout in siblings)
    return len(siblings) >= n and max(of_role.values()) <= n
