"""The sources of rewards that come with the package: `rule:format`, `rule:length`, `verify:exact`, `verify:math`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from openrlhf_ext.errors import RewardError
from openrlhf_ext.rewards.answer import Answer
from openrlhf_ext.rewards.process import PluginSource, RewardBatch
from openrlhf_ext.rewards.sources import RewardSettings, RewardSource, RuleSettings
from openrlhf_ext.types import Report

IN_A_PROCESS = ("rule:format", "verify:exact", "verify:math")
BUILTIN = (*IN_A_PROCESS, "rule:length")


def is_builtin(spec: str) -> bool:
    """Whether a spec is of the form of one; it may still name none."""
    return spec.startswith(("rule:", "verify:"))


def open_builtin(spec: str, name: str, settings: RewardSettings) -> RewardSource:
    """Raises RewardError for one that there is not, or whose settings are missing or wrong."""
    rules = settings.rules
    if spec not in BUILTIN:
        raise RewardError(f"reward {spec!r}: there is no such rule; there are {', '.join(BUILTIN)}.")
    if spec == "rule:length":
        if rules.length_range is None:
            raise RewardError("reward rule:length: its range is missing: give --reward.length_range LOW HIGH.")
        return LengthSource(name, *rules.length_range)
    if spec == "rule:format" and (rules.format_pattern is None) == (not rules.format_tags):
        raise RewardError("reward rule:format: give either --reward.format_pattern or --reward.format_tags.")
    for pattern in (rules.format_pattern, rules.answer_pattern):
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise RewardError(f"reward {spec}: {pattern!r} is no regular expression ({error}).") from None
    return RuleSource(spec, name, rules, load_timeout_s=settings.load_timeout_s)


class RuleSource(PluginSource):
    """One of the rules in `rules`, in a process of its own."""

    def __init__(self, spec: str, name: str, rules: RuleSettings, *, load_timeout_s: float) -> None:
        super().__init__(name, Path(__file__).with_name("rules.py"), load_timeout_s=load_timeout_s)
        self.origin = spec
        self._rules = dataclasses.asdict(rules)

    def ask(self, batch: RewardBatch, timeout_s: float) -> Answer:
        columns = {"kind": self.origin, "settings": self._rules, "limit_s": timeout_s}
        texts = RewardBatch(answers(batch), batch.prompts, batch.labels, columns)  # type: ignore[arg-type]
        return super().ask(texts, timeout_s)


class LengthSource:
    """1 for an answer of LOW to HIGH tokens; a shorter one n / LOW, a longer one HIGH / n.

    A trial call, which has no tokens, gets 0.
    """

    signature = "a rule"

    def __init__(self, name: str, low: int, high: int) -> None:
        self.name = name
        self.origin = "rule:length"
        self._low = low
        self._high = high

    def start(self) -> None:
        """Nothing to start."""

    def ask(self, batch: RewardBatch, timeout_s: float) -> Answer:
        if not batch.samples:
            return Answer([0.0] * len(batch.queries))
        return Answer([self._reward(rollout.response_length) for _, rollout in batch.samples])

    def _reward(self, n: int) -> float:
        if n < self._low:
            return n / self._low
        return min(self._high / n, 1.0) if n else 1.0

    def take_report(self) -> Report:
        return {}

    def close(self) -> None:
        """Nothing to close."""


def answers(batch: RewardBatch) -> list[str]:
    """The texts of the answers alone. Without rollouts they are the ends of the queries."""
    if batch.samples:
        return [rollout.text for _, rollout in batch.samples]
    return [query.removeprefix(prompt) for query, prompt in zip(batch.queries, batch.prompts, strict=True)]
