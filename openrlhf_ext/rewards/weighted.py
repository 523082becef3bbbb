"""The weighted sum of several reward sources as the `RewardFn` port."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import starmap
from operator import mul
from typing import TYPE_CHECKING, Any, TypeVar

import tenacity

from openrlhf_ext.errors import RewardError
from openrlhf_ext.rewards.answer import (
    EXPECTED_RETURN,
    EXPECTED_SIGNATURE,
    Answer,
    AnswerError,
    bad_positions,
)
from openrlhf_ext.rewards.normalise import Scaled, normalised
from openrlhf_ext.rewards.outcome import FailedEpisodes
from openrlhf_ext.rewards.process import AsksLater, Decoded, RewardBatch
from openrlhf_ext.rewards.sources import Normalisation, RewardSettings, RewardSource, RoleSource
from openrlhf_ext.types import Metric, Outcome, Prompt, Report, Rollout, Score, ScoreFailure, merge_reports

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORTEST_SHARE_S = 1.0
PROBE_RESPONSES = ("The answer is 1.", "I do not know.")
UNNORMALISED = "unnormalised"

T = TypeVar("T")
Groups = Sequence[tuple[Prompt, Sequence[Rollout]]]


class WeightedReward:
    """`RewardFn`: one call per source for a whole batch of groups.

    `Score.value` is the weighted sum of the sources' rewards, each normalised as the settings say over the groups
    that all sources scored. `Score.parts` has each source's own reward, as it gave it, under its name, each of its
    extra logs under `name/log`, and with normalisation the plain weighted sum as `unnormalised`. `Score.filter_value`
    is the mean of the scores of those sources that give any; where none does it is the plain sum with normalisation,
    and None without. `Score.turns` are the sources' turns by their weights.

    A call that fails is repeated up to `max_retries` times, unless its source says that this is final. After that
    `on_error abort` raises RewardError; under `drop_group` a reward that is not finite fails its own group, and after
    any other failure each group that has no rewards is asked for once by itself, within its share of the time limit,
    to find those that fail; not where the failure is final. `retries` counts the repeated calls by their reason,
    since the last `take_report`.
    """

    def __init__(
        self,
        sources: Sequence[RewardSource],
        settings: RewardSettings,
        tokenizer: PreTrainedTokenizerBase | None,
        roles: Sequence[RoleSource] = (),
    ) -> None:
        self._texts = tuple(sources)  # those that are there before any role
        self._sources: tuple[RewardSource, ...] = (*sources, *roles)
        count = len(self._sources)
        self._weights = settings.weights or (1.0,) * count
        given: tuple[Normalisation, ...] = settings.normalize or ("none",)
        self._scales = given * count if len(given) == 1 else given
        self._normalises = any(how != "none" for how in self._scales)
        self._settings = settings
        self._tokenizer = tokenizer
        self._tried_later: list[tuple[RewardSource, RewardBatch]] = []
        self.retries: Counter[str] = Counter()
        self._failed = FailedEpisodes(settings.on_error)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(source.name for source in self._sources)

    @property
    def plain(self) -> PlainReward:
        """The same rewards without normalisation, for evaluations: normalised ones have the mean 0 at all times."""
        return PlainReward(self)

    def start(self) -> None:
        """Import each file now; else `probe` or the first `score` does. Raises RewardError for one that cannot be."""
        for source in self._texts:
            source.start()

    def probe(self, prompts: Sequence[Prompt] = ()) -> None:
        """Import each file or server and call it once on two samples, of `prompts` where given.

        The trial of a file that asks the judge is made before the first `score`, for the judge is started later.
        Raises RewardError that shows the expected and the found signature or return.
        """
        pair = [*prompts[:2]] or [Prompt("probe", (), "What is 1 + 0?", "1")]
        pair = [pair[0], pair[-1]]
        texts = [prompt.text + response for prompt, response in zip(pair, PROBE_RESPONSES, strict=True)]
        batch = replace(_batch(pair, texts), trial=True)
        for source in self._texts:
            source.start()
            try:
                self._try(source, batch)
            except AsksLater:
                self._tried_later.append((source, replace(batch, trial=False)))

    def _try(self, source: RewardSource, batch: RewardBatch) -> None:
        try:
            answer = source.ask(batch, self._settings.timeout_s)
            _require_finite(answer)
        except AnswerError as error:
            raise RewardError(
                f"reward {source.origin} failed its trial call on two samples ({error.reason}: {error.detail}); "
                f"expected {EXPECTED_SIGNATURE} -> {EXPECTED_RETURN}; found {source.signature}, "
                f"with the columns {', '.join(batch.columns) or 'none'} for its keyword arguments."
            ) from None

    def score(self, groups: Groups) -> list[list[Score] | ScoreFailure]:
        """Scores of each group in order, or its failure. Raises RewardError under `on_error abort`."""
        return self._score(groups, normalises=self._normalises)

    def _score(self, groups: Groups, *, normalises: bool) -> list[list[Score] | ScoreFailure]:
        if not groups:
            return []
        if failed := self._failed.find(groups):
            rest = [group for place, group in enumerate(groups) if place not in failed]
            scored = iter(self._score(rest, normalises=normalises))
            return [failed[place] if place in failed else next(scored) for place in range(len(groups))]
        while self._tried_later:
            self._try(*self._tried_later.pop())
        sizes = [len(rollouts) for _, rollouts in groups]
        samples = [(prompt, rollout) for prompt, rollouts in groups for rollout in rollouts]
        queries = Decoded(len(samples), lambda: self._queries(groups))
        batch = _batch([prompt for prompt, _ in samples], queries, samples)
        if len(self._sources) == 1:
            results = [self._ask(self._sources[0], batch, sizes)]
        else:
            with ThreadPoolExecutor(len(self._sources)) as pool:
                results = list(pool.map(lambda source: self._ask(source, batch, sizes), self._sources))
        roles = [[rollout.role for rollout in rollouts] for _, rollouts in groups]
        return self._combine([list(answers) for answers in zip(*results, strict=True)], roles, normalises=normalises)

    def take_report(self) -> dict[str, Metric]:
        """Since the last call: `reward/retries/REASON` over all sources, and what each source says itself."""
        retries = {f"reward/retries/{reason}": Metric(n, reduction="sum") for reason, n in self.retries.items()}
        self.retries.clear()
        return merge_reports([retries, self._failed.take_report(), *(source.take_report() for source in self._sources)])

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def __enter__(self) -> WeightedReward:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _queries(self, groups: Groups) -> list[str]:
        if self._tokenizer is None:
            return [prompt.text + rollout.text for prompt, rollouts in groups for rollout in rollouts]
        tokens = [rollout.token_ids.tolist() for _, rollouts in groups for rollout in rollouts]
        return self._tokenizer.batch_decode(tokens, skip_special_tokens=False)

    def _ask(self, source: RewardSource, batch: RewardBatch, sizes: Sequence[int]) -> list[Answer | ScoreFailure]:
        """The source's answer for each group."""
        try:
            return list(_split(self._ask_with_retries(source, batch), sizes))
        except AnswerError as error:
            if self._settings.on_error == "abort":
                tries = "" if error.final else f" {self._settings.max_retries + 1} times"
                raise RewardError(
                    f"reward {source.origin} failed{tries} "
                    f"({error.reason}: {error.detail}); mend it, or give --reward.on_error drop_group."
                ) from None
            return self._ask_by_group(source, batch, sizes, error)

    def _ask_by_group(
        self, source: RewardSource, batch: RewardBatch, sizes: Sequence[int], error: AnswerError
    ) -> list[Answer | ScoreFailure]:
        """After an error for the whole batch: the groups that it answered, and each of the others by itself."""
        known: list[Answer | None] = [None] * len(sizes)
        if error.answer is not None:
            known = list(_split(error.answer, sizes))
        if error.reason == "not_finite":
            return [_checked(source, part) for part in known if part is not None]
        share = min(max(self._settings.timeout_s / len(sizes), SHORTEST_SHARE_S), self._settings.timeout_s)
        answers: list[Answer | ScoreFailure] = []
        start = 0
        for size, part in zip(sizes, known, strict=True):
            if part is not None and not bad_positions(part):
                answers.append(part)
            elif part is not None and error.final:
                answers.append(ScoreFailure(error.reason, f"{source.name}: {error.detail}"))
            else:
                answers.append(_asked_alone(source, batch.part(start, start + size), share))
            start += size
        return answers

    def _ask_with_retries(self, source: RewardSource, batch: RewardBatch) -> Answer:
        def count(state: tenacity.RetryCallState) -> None:
            assert state.outcome is not None
            error = state.outcome.exception()
            assert isinstance(error, AnswerError)
            self.retries[error.reason] += 1

        for attempt in tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._settings.max_retries + 1),
            wait=tenacity.wait_exponential(multiplier=self._settings.backoff_s),
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, AnswerError) and not error.final),
            before_sleep=count,
            reraise=True,
        ):
            with attempt:
                answer = source.ask(batch, self._settings.timeout_s)
                _require_finite(answer)
        return answer

    def _combine(
        self,
        groups: Sequence[Sequence[Answer | ScoreFailure]],
        roles: Sequence[Sequence[str]],
        *,
        normalises: bool,
    ) -> list[list[Score] | ScoreFailure]:
        """The scores of each group from the answers of all sources, or the first failure of one of them."""
        whole: list[list[Answer]] = []
        failures: list[ScoreFailure | None] = []
        for group in groups:
            failures.append(next((answer for answer in group if isinstance(answer, ScoreFailure)), None))
            if failures[-1] is None:
                whole.append([answer for answer in group if isinstance(answer, Answer)])
        plain: Normalisation = "none"
        scales = self._scales if normalises else (plain,) * len(self._sources)
        own = [each for each, failure in zip(roles, failures, strict=True) if failure is None]
        columns = [normalised([answers[s].rewards for answers in whole], how, own) for s, how in enumerate(scales)]
        scored = iter(
            [
                self._scores(answers, [column[index] for column in columns], normalises=normalises)
                for index, answers in enumerate(whole)
            ]
        )
        return [next(scored) if failure is None else failure for failure in failures]

    def _scores(self, answers: Sequence[Answer], terms: Sequence[Scaled], *, normalises: bool) -> list[Score]:
        """Of one group; `terms` are what is weighed of each source."""
        count, named, noted = len(answers[0].rewards), {}, {}
        for name, answer in zip(self.names, answers, strict=True):
            named[name] = answer.rewards
            named.update({f"{name}/{log}": values for log, values in answer.logs.items()})
            if answer.notes is not None:
                noted[name] = answer.notes
        parts = _rows(named, count)
        for name in (name for name, column in named.items() if any(map(math.isnan, column))):
            for part in parts:
                if math.isnan(part[name]):
                    del part[name]
        marked = [answer.scores for answer in answers if answer.scores is not None]
        marks: list[float | None] = [sum(row) / len(row) for row in zip(*marked, strict=True)] or [None] * count
        if normalises:
            unnormalised = self._weighed([answer.rewards for answer in answers])
            for part, value in zip(parts, unnormalised, strict=True):
                part[UNNORMALISED] = value
            marks = marks if marked else [*unnormalised]
        values = self._weighed([term.rewards for term in terms])
        columns = values, parts, marks, _rows(noted, count), self._turns(answers, terms)
        return list(starmap(Score, zip(*columns, strict=True)))

    def _turns(self, answers: Sequence[Answer], terms: Sequence[Scaled]) -> list[tuple[tuple[int, float], ...]]:
        """What fell where, by weight and scale; what a normalisation takes away falls where the rest does."""
        turns: list[list[tuple[int, float]]] = [[] for _ in answers[0].rewards]
        for weight, term, answer in zip(self._weights, terms, answers, strict=True):
            if answer.turns is not None:
                for own, factor, fell in zip(turns, term.factors, answer.turns, strict=True):
                    own.extend((position, weight * factor * reward) for position, reward in fell)
        return [tuple(sorted(own)) for own in turns]

    def _weighed(self, columns: Sequence[Sequence[float]]) -> list[float]:
        """The sums of the sources' columns by their weights."""
        return [sum(map(mul, self._weights, row)) for row in zip(*columns, strict=True)]


class PlainReward:
    """`RewardFn`: the rewards of another one as its sources give them, weighed and not normalised."""

    def __init__(self, reward: WeightedReward) -> None:
        self._reward = reward

    def score(self, groups: Groups) -> list[list[Score] | ScoreFailure]:
        return self._reward._score(groups, normalises=False)

    def take_report(self) -> Report:
        return self._reward.take_report()


def _rows(columns: Mapping[str, Sequence[T]], count: int) -> list[dict[str, T]]:
    """The named columns as `count` rows."""
    if not columns:
        return [{} for _ in range(count)]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _require_finite(answer: Answer) -> None:
    bad = bad_positions(answer)
    if bad:
        detail = f"{len(bad)} of {len(answer.rewards)} rewards or scores are not finite"
        raise AnswerError("not_finite", detail, answer)


def _asked_alone(source: RewardSource, batch: RewardBatch, limit_s: float) -> Answer | ScoreFailure:
    try:
        return _checked(source, source.ask(batch, limit_s))
    except AnswerError as error:
        return ScoreFailure(error.reason, f"{source.name}: {error.detail}")


def _checked(source: RewardSource, answer: Answer) -> Answer | ScoreFailure:
    try:
        _require_finite(answer)
    except AnswerError as error:
        return ScoreFailure(error.reason, f"{source.name}: {error.detail}")
    return answer


def _split(answer: Answer, sizes: Sequence[int]) -> Iterable[Answer]:
    start = 0
    for size in sizes:
        yield answer.part(start, start + size)
        start += size


def _batch(
    prompts: Sequence[Prompt], queries: Sequence[str], samples: Sequence[tuple[Prompt, Rollout]] = ()
) -> RewardBatch:
    """Columns that only some rows have (a mixture) are None for the others.

    Rollouts of an environment have two columns more: `role` and `episode`.
    """
    names: dict[str, Any] = {name: None for prompt in prompts for name in prompt.meta}
    columns = {name: [prompt.meta.get(name) for prompt in prompts] for name in names}
    rollouts = [rollout for _, rollout in samples]
    if any(rollout.role or rollout.outcome for rollout in rollouts):
        columns["role"] = [rollout.role for rollout in rollouts]
        outcomes = [rollout.outcome for rollout in rollouts]
        columns["episode"] = [dict(each.info) if isinstance(each, Outcome) else {} for each in outcomes]
    texts, labels = [prompt.text for prompt in prompts], [prompt.label for prompt in prompts]
    return RewardBatch(queries, texts, labels, columns, samples)
