"""The judge as a source of rewards, among files, servers and reward models."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from openrlhf_ext.rewards.answer import Answer, AnswerError, Reason
from openrlhf_ext.rewards.judge.asking import NoVerdict
from openrlhf_ext.rewards.judge.judge import Judge, Verdict
from openrlhf_ext.rewards.judge.prompt import Case, check_case
from openrlhf_ext.rewards.judge.types import LanguageModel
from openrlhf_ext.rewards.process import RewardBatch
from openrlhf_ext.types import Prompt, Report

REASONS: dict[str, Reason] = {"timeout": "timeout", "crashed": "crashed", "parse": "wrong_type"}


class JudgeSource:
    """A `RoleSource`: rewards in the rubric's range, a log for each criterion, the verdict as JSON in the notes.

    The log `cut` is 1 where a part of a text was too long to be shown to the judge. A response without a verdict
    has no reward: AnswerError says how many, with the rewards of the others, and `--reward.on_error` decides.
    """

    signature = "a judge"

    def __init__(self, judge: Judge, origin: str, endpoint: LanguageModel | None = None) -> None:
        """`origin` names the judge's model and rubric in messages. With an endpoint no role is waited for."""
        assert judge.rubric is not None, "a source of rewards has a rubric"
        self.name = "judge"
        self.origin = origin
        self.judge = judge
        self._has_endpoint = endpoint is not None
        if endpoint is not None:
            judge.connect(endpoint)

    def connect(self, roles: Any) -> None:
        """`roles.judge` is the LanguageModel that runs on the cluster."""
        if not self._has_endpoint:
            self.judge.connect(roles.judge)

    def start(self) -> None:
        """Nothing to start: the model runs among the other roles, or elsewhere."""

    def check_rows(self, prompts: Sequence[Prompt]) -> None:
        """Raises RewardError for the first row that lacks what the rubric's instructions show."""
        rubric, mode = self.judge.rubric, self.judge.settings.mode
        assert rubric is not None
        for prompt in prompts:
            check_case(rubric, mode, Case(conversation(prompt), "", prompt.label, prompt.meta, prompt.id))

    def ask(self, batch: RewardBatch, timeout_s: float) -> Answer:
        """The verdicts on a batch. A judge needs as long as it needs; its engine or endpoint has limits of its own."""
        cases = _cases(batch)
        places = _groups(batch) if self.judge.settings.mode == "pairwise" else [list(range(len(cases)))]
        found = self.judge.judge_groups([[cases[i] for i in group] for group in places])
        verdicts: list[Verdict | NoVerdict] = [NoVerdict("", "")] * len(cases)
        for group, results in zip(places, found, strict=True):
            for place, result in zip(group, results, strict=True):
                verdicts[place] = result
        answer = self._answer(verdicts)
        failures = [verdict for verdict in verdicts if isinstance(verdict, NoVerdict)]
        if failures:
            reasons = Counter(failure.reason for failure in failures)
            counted = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
            [(first, _)] = reasons.most_common(1)
            detail = next(failure.detail for failure in failures if failure.reason == first)
            raise AnswerError(
                REASONS.get(first, "exception"),
                f"no verdict on {len(failures)} of {len(cases)} responses ({counted}; {detail})",
                answer,
                final=True,  # what can be asked again was, one by one
            )
        return answer

    def take_report(self) -> Report:
        return self.judge.take_report()

    def close(self) -> None:
        """Nothing to close: the model ends with the other roles."""

    def _answer(self, verdicts: Sequence[Verdict | NoVerdict]) -> Answer:
        assert self.judge.rubric is not None
        rewards, notes = [], []
        logs: dict[str, list[float]] = {c.name: [] for c in self.judge.rubric.criteria}
        logs["cut"] = []
        for verdict in verdicts:
            rewards.append(verdict.reward if isinstance(verdict, Verdict) else math.nan)
            notes.append(verdict.note() if isinstance(verdict, Verdict) else "")
            for criterion in self.judge.rubric.criteria:
                value = verdict.numbers[criterion.name] if isinstance(verdict, Verdict) else math.nan
                logs[criterion.name].append(value)
            logs["cut"].append(float(isinstance(verdict, Verdict) and verdict.cut > 0))
        return Answer(rewards, logs=logs, notes=notes)


def conversation(prompt: Prompt) -> str:
    """A prompt as a person reads it: its one message, its turns with their roles, or its text."""
    return spoken(prompt.messages) if prompt.messages else prompt.text


def spoken(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation without markup: its one message, or its turns with their roles."""
    if len(messages) == 1:
        return str(messages[0].get("content", ""))
    return "\n\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in messages)


def _cases(batch: RewardBatch) -> list[Case]:
    """A batch without rollouts (a trial call, a request over HTTP) has its responses at the ends of its queries."""
    rows = [{name: column[i] for name, column in batch.columns.items()} for i in range(len(batch.queries))]
    if batch.samples:
        return [
            Case(conversation(prompt), rollout.text, prompt.label, row, prompt.id)
            for (prompt, rollout), row in zip(batch.samples, rows, strict=True)
        ]
    return [
        Case(prompt, query.removeprefix(prompt), label, row)
        for query, prompt, label, row in zip(batch.queries, batch.prompts, batch.labels, rows, strict=True)
    ]


def _groups(batch: RewardBatch) -> list[list[int]]:
    """Places of the samples that are compared: of one prompt, and of one role where there are several."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, prompt in enumerate(batch.prompts):
        key = (prompt, "")
        if batch.samples:
            asked, rollout = batch.samples[i]
            key = (asked.id, rollout.role)
        groups.setdefault(key, []).append(i)
    return list(groups.values())
