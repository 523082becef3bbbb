"""Evaluation by sampling: pass@1, pass@k, rewards and lengths per data source.

The rule: a sample passes when its score is at least `PASS_AT`. The score is what the reward function
itself calls `scores` where it gives them (0 to 1), otherwise the reward; so 1/0 and +1/-1 rewards mean what
they say. The mean reward is reported beside it and depends on no rule.

A prompt whose rewards could not be computed is counted under `failed` and enters no other figure.

In a game every role has figures of its own, for what one player wins another may lose. A role that did not speak in an
episode has no sample of it: pass@k is then taken over the samples there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from openrlhf_ext.ports import Generator, RewardFn
from openrlhf_ext.types import Prompt, Rollout, Sampling, Score, ScoreFailure

PASS_AT = 0.5


@dataclass(frozen=True, slots=True)
class PromptOutcome:
    """What became of the n samples of one prompt (in a game: of one role), in order; a failed prompt has none."""

    prompt_id: str
    source: str
    rewards: tuple[float, ...] = ()
    passed: tuple[bool, ...] = ()
    response_lengths: tuple[int, ...] = ()
    truncated: tuple[bool, ...] = ()
    failure: ScoreFailure | None = None
    role: str = ""


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    """One answer and what was made of it; `place` is that of its prompt among those that were asked."""

    place: int
    rollout: Rollout
    score: Score | ScoreFailure


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One evaluation with `n` samples per prompt, prompt by prompt: two of them are paired by id and sample."""

    n: int
    outcomes: tuple[PromptOutcome, ...]
    answers: tuple[SampledAnswer, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(sorted({outcome.source for outcome in self.outcomes}))

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(sorted({outcome.role for outcome in self.outcomes}))

    def scored(self, source: str | None = None, role: str | None = None) -> list[PromptOutcome]:
        """The outcomes of one source and role (None: of all) that have scores."""
        return [o for o in self._asked(source, role) if o.failure is None]

    def pass_at(self, k: int, source: str | None = None, role: str | None = None) -> float:
        """Mean over prompts of the unbiased pass@k; NaN without a scored prompt."""
        passed = [o.passed for o in self.scored(source, role)]
        return _mean([pass_at_k(len(each), sum(each), min(k, len(each))) for each in passed])

    def reward(self, source: str | None = None, role: str | None = None) -> float:
        """Mean reward over prompts and samples; NaN without a scored prompt."""
        return _mean([reward for o in self.scored(source, role) for reward in o.rewards])

    def metrics(self) -> dict[str, float]:
        """`eval/<source>/...` for every source and, where there are several, `eval/all/...`.

        In a game `eval/<source>/<role>/...`, role by role.
        """
        values: dict[str, float] = {}
        for role in self.roles:
            suffix = f"/{role}" if role else ""
            for source in self.sources:
                values |= self._figures(f"eval/{source}{suffix}", source, role)
            if len(self.sources) > 1:
                values |= self._figures(f"eval/all{suffix}", None, role)
        return values

    def _asked(self, source: str | None, role: str | None) -> list[PromptOutcome]:
        return [o for o in self.outcomes if source in (None, o.source) and role in (None, o.role)]

    def _figures(self, prefix: str, source: str | None, role: str) -> dict[str, float]:
        scored = self.scored(source, role)
        asked = len(self._asked(source, role))
        figures = {f"{prefix}/pass@{k}": self.pass_at(k, source, role) for k in sorted({1, self.n})}
        figures[f"{prefix}/reward"] = self.reward(source, role)
        figures[f"{prefix}/response_length"] = _mean([length for o in scored for length in o.response_lengths])
        figures[f"{prefix}/truncated"] = _mean([cut for o in scored for cut in o.truncated])
        figures[f"{prefix}/prompts"] = float(len(scored))
        figures[f"{prefix}/failed"] = float(asked - len(scored))
        return figures


def pass_at_k(n: int, passed: int, k: int) -> float:
    """The chance that at least one of k samples passes, unbiased from n samples of which `passed` did.

    1 - C(n - c, k) / C(n, k): Chen et al. 2021, arXiv:2107.03374, section 2.1.
    """
    assert 0 <= passed <= n and 1 <= k <= n, "c of n samples, and k of them are looked at"
    return 1.0 - math.comb(n - passed, k) / math.comb(n, k)


def evaluate_generation(
    prompts: Sequence[Prompt], generator: Generator, reward: RewardFn, sampling: Sampling
) -> EvalResult:
    """Sample `sampling.n` answers of every prompt and score them.

    The seed in `sampling` should be the run's and not the step's: evaluations before and after training
    then differ by the weights alone.
    """
    assert prompts, "an evaluation has at least one prompt"
    rollouts = generator.generate(prompts, sampling)
    results = reward.score(list(zip(prompts, rollouts, strict=True)))
    outcomes: list[PromptOutcome] = []
    answers: list[SampledAnswer] = []
    for at, (prompt, siblings, scores) in enumerate(zip(prompts, rollouts, results, strict=True)):
        told_of: Sequence[Score | ScoreFailure] = (
            [scores] * len(siblings) if isinstance(scores, ScoreFailure) else scores
        )
        answers += [SampledAnswer(at, rollout, told) for rollout, told in zip(siblings, told_of, strict=True)]
        for role in sorted({rollout.role for rollout in siblings}):
            own = [place for place, rollout in enumerate(siblings) if rollout.role == role]
            told = scores if isinstance(scores, ScoreFailure) else [scores[place] for place in own]
            outcomes.append(_outcome(prompt, role, [siblings[place] for place in own], told))
    return EvalResult(sampling.n, tuple(outcomes), tuple(answers))


def _outcome(
    prompt: Prompt, role: str, rollouts: Sequence[Rollout], scores: Sequence[Score] | ScoreFailure
) -> PromptOutcome:
    if isinstance(scores, ScoreFailure):
        return PromptOutcome(prompt.id, prompt.source, failure=scores, role=role)
    return PromptOutcome(
        prompt_id=prompt.id,
        source=prompt.source,
        rewards=tuple(score.value for score in scores),
        passed=tuple(_passes(score) for score in scores),
        response_lengths=tuple(rollout.response_length for rollout in rollouts),
        truncated=tuple(rollout.finish_reason == "length" for rollout in rollouts),
        role=role,
    )


def _passes(score: Score) -> bool:
    return passes(score.value if score.filter_value is None else score.filter_value)


def passes(value: float) -> bool:
    return value >= PASS_AT


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
