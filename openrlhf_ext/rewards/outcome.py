"""What an environment itself says of its episodes, as a source of rewards; and episodes that failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from openrlhf_ext.errors import RewardError
from openrlhf_ext.rewards.answer import Answer
from openrlhf_ext.rewards.process import RewardBatch
from openrlhf_ext.types import Metric, Outcome, Prompt, Report, Rollout, ScoreFailure

Groups = Sequence[tuple[Prompt, Sequence[Rollout]]]


class OutcomeSource:
    """A `RewardSource` over `Rollout.outcome`: the rewards that the episodes of --train.agent_func_path gave.

    An episode that gave none has 0; `reward/NAME/none` counts those that never could (an executor of OpenRLHF's whose
    reward is None). A log that an episode lacks and others have is NaN for it.
    """

    signature = "an environment"

    def __init__(self, path: str) -> None:
        self.name = "environment"
        self.origin = path
        self._none = 0

    def connect(self, roles: Any) -> None:
        """Nothing to connect: the rewards come with the rollouts."""

    def start(self) -> None:
        """Nothing to start: engines play the episodes."""

    def ask(self, batch: RewardBatch, timeout_s: float) -> Answer:
        """The outcomes of the samples, of which none failed (`failed_episodes`)."""
        outcomes = [rollout.outcome for _, rollout in batch.samples]
        scores = [outcome.score for outcome in outcomes if isinstance(outcome, Outcome)]
        assert len(scores) == len(outcomes), "episodes that failed are no samples of a batch"
        self._none += sum("environment" in score.notes for score in scores)
        names = dict.fromkeys(name for score in scores for name in score.parts)
        marked = any(score.filter_value is not None for score in scores)
        values = [score.value for score in scores]
        marks = [score.value if score.filter_value is None else score.filter_value for score in scores]
        return Answer(
            values,
            marks if marked else None,
            {name: [score.parts.get(name, math.nan) for score in scores] for name in names},
            turns=[outcome.turns for outcome in outcomes if isinstance(outcome, Outcome)],
        )

    def take_report(self) -> Report:
        none, self._none = self._none, 0
        return {f"reward/{self.name}/none": Metric(none, reduction="sum")} if none else {}

    def close(self) -> None:
        """Nothing to close."""


class FailedEpisodes:
    """Groups of which an episode failed: they are scored by nobody. Counts episodes since the last `take_report`."""

    def __init__(self, on_error: Literal["abort", "drop_group"]) -> None:
        self._on_error = on_error
        self._counts: Counter[str] = Counter()

    def find(self, groups: Groups) -> dict[int, ScoreFailure]:
        """Their failures by the places of the groups. Raises RewardError under `on_error abort` if there are any."""
        found: dict[int, ScoreFailure] = {}
        for place, (prompt, rollouts) in enumerate(groups):
            failures = [rollout.outcome for rollout in rollouts if isinstance(rollout.outcome, ScoreFailure)]
            self._counts.update(failure.reason for failure in failures)
            if failures and self._on_error == "abort":
                raise RewardError(
                    f"An episode of prompt {prompt.id} failed ({failures[0].reason}: {failures[0].detail}); "
                    "mend the agent, or give --reward.on_error drop_group."
                )
            if failures:
                found[place] = ScoreFailure(failures[0].reason, f"episode: {failures[0].detail}")
        return found

    def take_report(self) -> dict[str, Metric]:
        counts, self._counts = self._counts, Counter()
        return {f"rollout/failed_episodes/{reason}": Metric(n, reduction="sum") for reason, n in counts.items()}
