"""A judge: a language model with a rubric, that gives verdicts on responses and answers plugins' questions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openrlhf_ext.rewards.judge.asking import Asking, NoVerdict
from openrlhf_ext.rewards.judge.cache import VerdictCache
from openrlhf_ext.rewards.judge.pairs import PairVerdict, Standing, choose_pairs, group_scores, in_both_orders
from openrlhf_ext.rewards.judge.prompt import Asked, Case, write_pair_prompt, write_prompt
from openrlhf_ext.rewards.judge.read import json_reader, read_verdict
from openrlhf_ext.rewards.judge.rubric import Mode, Rubric, Value
from openrlhf_ext.rewards.judge.settings import JudgeSettings
from openrlhf_ext.rewards.judge.types import LanguageModel, Question
from openrlhf_ext.rewards.judge.vote import vote, vote_on_pair
from openrlhf_ext.types import Metric, derive_seed


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge says of a response.

    `criteria` are the voted values on the rubric's scales; pairwise, the share of its pairs that the response won,
    a tie being half. `samples` are the replies that were read, as they were.
    """

    reward: float
    criteria: Mapping[str, Value]
    samples: Sequence[Mapping[str, Any]] = ()
    cut: int = 0  # characters of the data that the judge was not shown
    numbers: Mapping[str, float] = field(default_factory=dict)  # the criteria as numbers

    def note(self) -> str:
        """As JSON, to be kept with the rollout."""
        return json.dumps(
            {"reward": self.reward, "criteria": dict(self.criteria), "samples": [dict(s) for s in self.samples]},
            ensure_ascii=False,
        )


class Judge:
    """One per run, whoever asks: rewards, plugins, the calibration. Threads may share it."""

    def __init__(
        self,
        rubric: Rubric | None,
        settings: JudgeSettings | None = None,
        cache: VerdictCache | None = None,
        special_tokens: Sequence[str] = (),
    ) -> None:
        """Without a rubric it only answers `ask`. `special_tokens` are those of the model's tokenizer."""
        self.rubric = rubric
        self.settings = settings or JudgeSettings()
        self._special_tokens = tuple(special_tokens)
        self._asking = Asking(cache)

    def connect(self, model: LanguageModel) -> None:
        """The model that answers from now on."""
        self._asking.connect(model)

    def judge_groups(self, groups: Sequence[Sequence[Case]]) -> list[list[Verdict | NoVerdict]]:
        """A verdict for each case, pointwise or pairwise within the groups, as the settings say.

        Raises RewardError where a row lacks what the rubric shows.
        """
        if self.settings.mode == "pairwise":
            return self._compare(groups)
        verdicts = iter(self.judge([case for group in groups for case in group]))
        return [[next(verdicts) for _ in group] for group in groups]

    def judge(self, cases: Sequence[Case]) -> list[Verdict | NoVerdict]:
        """A pointwise verdict for each case: it is there if more than half of its samples could be read."""
        rubric = self._rubric()
        prompts = [write_prompt(rubric, case, self._special_tokens) for case in cases]
        asked = self._samples(prompts, "pointwise")
        return [self._voted(samples, prompt.cut) for samples, prompt in zip(asked, prompts, strict=True)]

    def compare_pairs(self, pairs: Sequence[tuple[Case, Case]]) -> list[PairVerdict | NoVerdict]:
        """Which response of each pair is better in each criterion, asked in both orders."""
        rubric = self._rubric()
        orders = [pair for first, second in pairs for pair in ((first, second), (second, first))]
        prompts = [write_pair_prompt(rubric, *pair, self._special_tokens) for pair in orders]
        samples = self._samples(prompts, "pairwise")
        winners = [self._pair_vote(each) for each in samples]
        return [
            in_both_orders(
                rubric, winners[i], winners[i + 1], samples[i : i + 2], max(p.cut for p in prompts[i : i + 2])
            )
            for i in range(0, len(winners), 2)
        ]

    def ask(
        self,
        items: Sequence[str | Sequence[Mapping[str, str]]],
        schema: Mapping[str, Any] | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
    ) -> list[Any]:
        """The model's answers to texts or conversations ({"role", "content"} messages), in their order.

        With a JSON schema, which decoding enforces, an answer is the parsed JSON; without one the text. None
        where there is no answer, or none that follows the schema after one more try: counted under `judge/`.
        Raises ValueError for an item that is neither, or a schema that is none.
        """
        conversations = [_messages(item, index) for index, item in enumerate(items)]
        read = str if schema is None else json_reader(schema)
        questions = [
            Question(
                messages,
                schema,
                self.settings.max_new_tokens if max_new_tokens is None else max_new_tokens,
                self.settings.temperature if temperature is None else temperature,
                derive_seed(self.settings.seed, "ask", json.dumps(messages)),
            )
            for messages in conversations
        ]
        answers = self._asking.answers(questions, read)
        self._asking.count("no_verdict", sum(isinstance(answer, NoVerdict) for answer in answers))
        return [None if isinstance(answer, NoVerdict) else answer for answer in answers]

    def take_report(self) -> dict[str, Metric]:
        """Since the last call, under `judge/`: asked, cached, parse_failures, tokens, seconds, ..."""
        return self._asking.take_report()

    def _rubric(self) -> Rubric:
        assert self.rubric is not None, "a judge without a rubric gives no verdicts"
        return self.rubric

    def _samples(self, prompts: Sequence[Asked], mode: Mode) -> list[list[Any]]:
        """For each prompt what was read of its `samples` replies, NoVerdict where it could not be."""
        rubric, settings = self._rubric(), self.settings
        schema = rubric.schema(mode)
        self._asking.count("cut", sum(prompt.cut > 0 for prompt in prompts))
        self._asking.count("disarmed", sum(prompt.disarmed > 0 for prompt in prompts))
        questions = [
            Question(
                [{"role": "user", "content": prompt.text}], schema, settings.max_new_tokens, settings.temperature,
                derive_seed(settings.seed, sample, prompt.text),
            )
            for prompt in prompts
            for sample in range(settings.samples)
        ]  # fmt: skip
        answers = self._asking.answers(questions, lambda text: read_verdict(rubric, mode, text))
        return [answers[i : i + settings.samples] for i in range(0, len(answers), settings.samples)]

    def _voted(self, samples: Sequence[Any], cut: int) -> Verdict | NoVerdict:
        good = _enough(samples)
        if isinstance(good, NoVerdict):
            self._asking.count("no_verdict")
            return good
        rubric = self._rubric()
        values = vote(rubric.criteria, good)
        goodness = {criterion.name: criterion.goodness(values[criterion.name]) for criterion in rubric.criteria}
        numbers = {criterion.name: criterion.scale.number(values[criterion.name]) for criterion in rubric.criteria}
        return Verdict(rubric.reward(goodness), values, good, cut, numbers)

    def _pair_vote(self, samples: Sequence[Any]) -> dict[str, str] | NoVerdict:
        good = _enough(samples)
        if isinstance(good, NoVerdict):
            return good
        return {c.name: vote_on_pair([str(sample[c.name]) for sample in good]) for c in self._rubric().criteria}

    def _compare(self, groups: Sequence[Sequence[Case]]) -> list[list[Verdict | NoVerdict]]:
        rubric = self._rubric()
        chosen = [choose_pairs([case.response for case in group], self.settings.max_pairs) for group in groups]
        asked = [(group[i], group[j]) for group, pairs in zip(groups, chosen) for i, j, same in pairs if not same]
        verdicts = iter(self.compare_pairs(asked))
        results: list[list[Verdict | NoVerdict]] = []
        for group, pairs in zip(groups, chosen, strict=True):
            outcomes = [(i, j, None if same else next(verdicts)) for i, j, same in pairs]
            counts: Counter[str] = Counter()
            scored = group_scores(rubric, len(group), outcomes, counts)
            for name, n in counts.items():
                self._asking.count(name, n)
            results.append([self._ranked(score) for score in scored])
        return results

    def _ranked(self, score: Standing | NoVerdict) -> Verdict | NoVerdict:
        if isinstance(score, NoVerdict):
            self._asking.count("no_verdict")
            return score
        return Verdict(self._rubric().reward(score.shares), score.shares, score.pairs, score.cut, score.shares)


def _enough(samples: Sequence[Any]) -> list[dict[str, Value]] | NoVerdict:
    good = [sample for sample in samples if not isinstance(sample, NoVerdict)]
    if 2 * len(good) > len(samples):
        return good
    return next(sample for sample in samples if isinstance(sample, NoVerdict))


def _messages(item: Any, index: int) -> list[dict[str, str]]:
    if isinstance(item, str):
        return [{"role": "user", "content": item}]
    good = isinstance(item, Sequence) and item and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in item
    )  # fmt: skip
    if not good:
        raise ValueError(f"judge.ask: item {index} is neither a text nor a list of {{'role', 'content'}} messages")
    return [{"role": message["role"], "content": message["content"]} for message in item]
