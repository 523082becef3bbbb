"""Games in memory: two players, one policy; the attacker speaks twice, the assessor not in every episode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from fakes import GOOD, BigramGenerator, CountingReward

from openrlhf_ext.types import Outcome, Prompt, Rollout, Sampling, Score

ROLES = ("attacker", "assessor")
ENVIRONMENT = 5
"""The token that stands between two turns."""
WEIGHT = 2.0
"""Of the environment's reward in the attacker's."""


def silent(prompt: Prompt, episode: int) -> bool:
    """Whether the assessor says nothing in this episode."""
    return (len(prompt.text) + prompt.label + episode) % 3 == 0


class GameGenerator(BigramGenerator):
    """Each episode gives the rollout of each role that spoke."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        with self.alone():
            self._calls.append(f"generate {len(prompts)}x{sampling.n}")
            return [[r for e in range(sampling.n) for r in self._play(prompt, e, sampling)] for prompt in prompts]

    def _play(self, prompt: Prompt, episode: int, sampling: Sampling) -> Iterator[Rollout]:
        first = self._sample(prompt, 2 * episode, sampling)
        opening = replace(prompt, id=f"{prompt.id}/2", token_ids=(*first.token_ids.tolist(), ENVIRONMENT))
        second = self._sample(opening, 2 * episode, sampling)
        before = len(first.token_ids)
        rewards = tuple(
            (end - 1, float((rollout.token_ids[start:end] == GOOD).sum()))
            for rollout, start, end in (
                (first, len(prompt.token_ids), before),
                (second, before + 1, len(second.token_ids)),
            )
        )
        yield replace(
            second,
            prompt_id=prompt.id,
            action_mask=np.concatenate([first.action_mask, second.action_mask[before:]]),
            logprobs=np.concatenate([first.logprobs, second.logprobs[before:]]),
            versions=(min(first.versions[0], second.versions[0]), max(first.versions[1], second.versions[1])),
            outcome=Outcome(Score(sum(reward for _, reward in rewards)), rewards, {"episode": episode}),
            role=ROLES[0],
        )
        if not silent(prompt, episode):
            yield replace(self._sample(prompt, 2 * episode + 1, sampling), role=ROLES[1])


class GameReward(CountingReward):
    """The attacker's is the environment's by a weight, and a tenth of its share; the assessor's is far off."""

    def _one(self, prompt: Prompt, rollout: Rollout) -> Score:
        share = super()._one(prompt, rollout)
        if not isinstance(rollout.outcome, Outcome):
            return replace(share, value=50.0 + 9.0 * share.value)
        value = WEIGHT * rollout.outcome.score.value + 0.1 * share.value
        turns = tuple((position, WEIGHT * reward) for position, reward in rollout.outcome.turns)
        return replace(share, value=value, turns=turns, notes={"judge": str(share.value)})
