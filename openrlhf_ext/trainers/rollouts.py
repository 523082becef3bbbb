"""GENERATE and SCORE: from the prompts of one step to its scored groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from openrlhf_ext.data.source import PromptSource
from openrlhf_ext.ports import Generator, RewardFn
from openrlhf_ext.track.phases import PhaseClock
from openrlhf_ext.types import (
    FailedGroup,
    Prompt,
    Rollout,
    RolloutGroup,
    Sampling,
    Score,
    ScoredRollout,
    ScoreFailure,
    derive_seed,
)


@dataclass(frozen=True, slots=True)
class StepRollouts:
    """All that was sampled for one step, and where the prompts stood after it: what a resume goes on from."""

    epoch: int
    groups: tuple[RolloutGroup, ...]
    failed: tuple[FailedGroup, ...]
    prompts_state: Mapping[str, Any]

    @property
    def rollouts(self) -> list[Rollout]:
        """Those that are trained on, group by group."""
        return [member.rollout for group in self.groups for member in group.members]

    @property
    def tokens_by_phase(self) -> dict[str, float]:
        """How many tokens each phase works on: what was sampled, and the whole sequences of what is trained on."""
        failed = (rollout for group in self.failed for rollout in group.rollouts)
        sampled = sum(rollout.response_length for rollout in chain(self.rollouts, failed))
        trained = sum(len(rollout.token_ids) for rollout in self.rollouts)
        return {"generate": sampled, "infer": trained, "update": trained}


class RolloutSource:
    """Samples and scores one step's prompts at a time; the draws depend on (run seed, step) and nothing before."""

    def __init__(
        self,
        prompts: PromptSource,
        generator: Generator,
        reward: RewardFn,
        *,
        sampling: Sampling,
        seed: int,
        clock: PhaseClock,
    ) -> None:
        self._prompts = prompts
        self._generator = generator
        self._reward = reward
        self._sampling = sampling
        self._seed = seed
        self._clock = clock

    def next(self, step: int) -> StepRollouts | None:
        """The rollouts of this step; None when the prompts are used up."""
        drawn = self._prompts.next_batch()
        if drawn is None:
            return None
        sampling = replace(self._sampling, seed=derive_seed(self._seed, "rollout", step))
        with self._clock("generate"):
            rollouts = self._generator.generate(drawn.prompts, sampling)
        assert all(len(siblings) == sampling.n for siblings in rollouts), "n rollouts of every prompt"
        with self._clock("score"):
            results = self._reward.score(list(zip(drawn.prompts, rollouts, strict=True)))
        groups, failed = _sort_out(drawn.prompts, rollouts, results)
        return StepRollouts(drawn.epoch, groups, failed, self._prompts.state())


def _sort_out(
    prompts: Sequence[Prompt], rollouts: Sequence[Sequence[Rollout]], results: Sequence[Sequence[Score] | ScoreFailure]
) -> tuple[tuple[RolloutGroup, ...], tuple[FailedGroup, ...]]:
    groups, failed = [], []
    for prompt, siblings, result in zip(prompts, rollouts, results, strict=True):
        if isinstance(result, ScoreFailure):
            failed.append(FailedGroup(prompt, tuple(siblings), result))
        else:
            members = tuple(ScoredRollout(*pair) for pair in zip(siblings, result, strict=True))
            groups.append(RolloutGroup(prompt, members))
    return tuple(groups), tuple(failed)
