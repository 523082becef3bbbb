"""Reward sources by their specs, and their weighted sum as the `RewardFn` port."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

import tenacity

from openrlhf_ext.errors import RewardError, missing_file
from openrlhf_ext.rewards.answer import (
    EXPECTED_RETURN,
    EXPECTED_SIGNATURE,
    Answer,
    AnswerError,
    bad_positions,
)
from openrlhf_ext.rewards.process import PluginSource, RewardBatch
from openrlhf_ext.types import Metric, Outcome, Prompt, Report, Rollout, Score, ScoreFailure, merge_reports

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORTEST_SHARE_S = 1.0
PROBE_RESPONSES = ("The answer is 1.", "I do not know.")


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """How sources are called. `weights` has one entry per source, () means 1 each; times in seconds."""

    on_error: Literal["abort", "drop_group"] = "abort"
    weights: tuple[float, ...] = ()
    timeout_s: float = 180.0
    load_timeout_s: float = 120.0
    max_retries: int = 2
    backoff_s: float = 1.0  # before the first retry; doubles


class RewardSource(Protocol):
    """One reward file, server or model."""

    name: str
    origin: str
    signature: str

    def start(self) -> None: ...

    def ask(self, batch: RewardBatch, timeout_s: float) -> Answer: ...

    def take_report(self) -> Report: ...

    def close(self) -> None: ...


class RoleSource(RewardSource, Protocol):
    """A model on the cluster, which is started later than files and servers: it is connected before it is asked."""

    def connect(self, roles: Any) -> None:
        """`roles` are the living roles of the run; it takes its own from them."""
        ...


def load_reward(
    specs: Sequence[str],
    settings: RewardSettings,
    tokenizer: PreTrainedTokenizerBase | None = None,
    roles: Sequence[RoleSource] = (),
) -> WeightedReward:
    """The weighted sum of the sources that `specs` name (paths of Python files, http(s) URLs) and of the roles.

    With a tokenizer a query is the text of all tokens of a rollout, special ones included, as in
    OpenRLHF; without one it is the prompt's text and the response's. No user code runs before `probe`
    or the first `score`. Raises RewardError for a spec that is neither, or a file that is not there.
    """
    count = len(specs) + len(roles)
    if not count:
        raise RewardError(
            "no reward is named: give --reward.remote_url a Python file or a URL, or --reward.model_name_or_path."
        )
    if settings.weights and len(settings.weights) != count:
        raise RewardError(f"{len(settings.weights)} reward weights for {count} rewards: give one for each.")
    names = _source_names([*specs, *(role.name for role in roles)])
    for role, name in zip(roles, names[len(specs) :], strict=True):
        role.name = name
    sources = [_open(spec, name, settings) for spec, name in zip(specs, names, strict=False)]
    return WeightedReward(sources, settings, tokenizer, roles)


class WeightedReward:
    """`RewardFn`: one call per source for a whole batch of groups.

    `Score.value` is the weighted sum of the sources' rewards. `Score.parts` has each source's own reward
    under its name and each of its extra logs under `name/log`. `Score.filter_value` is the mean of the
    scores of those sources that give any, None where none does. `Score.turns` are the sources' turns by their weights.

    A call that fails is repeated up to `max_retries` times. After that `on_error abort` raises RewardError;
    under `drop_group` a reward that is not finite fails its own group, and after any other failure each
    group is asked for once by itself, within its share of the time limit, to find those that fail.
    `retries` counts the repeated calls by their reason, since the last `take_report`.
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
        self._weights = settings.weights or (1.0,) * len(self._sources)
        self._settings = settings
        self._tokenizer = tokenizer
        self.retries: Counter[str] = Counter()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(source.name for source in self._sources)

    def start(self) -> None:
        """Import each file now; else `probe` or the first `score` does. Raises RewardError for one that cannot be."""
        for source in self._texts:
            source.start()

    def probe(self, prompts: Sequence[Prompt] = ()) -> None:
        """Import each file or server and call it once on two samples, of `prompts` where given.

        Raises RewardError that shows the expected and the found signature or return.
        """
        pair = [*prompts[:2]] or [Prompt("probe", (), "What is 1 + 0?", "1")]
        pair = [pair[0], pair[-1]]
        texts = [prompt.text + response for prompt, response in zip(pair, PROBE_RESPONSES, strict=True)]
        batch = _batch(pair, texts)
        for source in self._texts:
            source.start()
            try:
                answer = source.ask(batch, self._settings.timeout_s)
                _require_finite(answer)
            except AnswerError as error:
                raise RewardError(
                    f"reward {source.origin} failed its trial call on two samples ({error.reason}: {error.detail}); "
                    f"expected {EXPECTED_SIGNATURE} -> {EXPECTED_RETURN}; found {source.signature}, "
                    f"with the columns {', '.join(batch.columns) or 'none'} for its keyword arguments."
                ) from None

    def score(self, groups: Sequence[tuple[Prompt, Sequence[Rollout]]]) -> list[list[Score] | ScoreFailure]:
        """Scores of each group in order, or its failure. Raises RewardError under `on_error abort`."""
        if not groups:
            return []
        sizes = [len(rollouts) for _, rollouts in groups]
        samples = [(prompt, rollout) for prompt, rollouts in groups for rollout in rollouts]
        batch = _batch([prompt for prompt, _ in samples], self._queries(groups), samples)
        if len(self._sources) == 1:
            results = [self._ask(self._sources[0], batch, sizes)]
        else:
            with ThreadPoolExecutor(len(self._sources)) as pool:
                results = list(pool.map(lambda source: self._ask(source, batch, sizes), self._sources))
        return [self._combine([result[index] for result in results]) for index in range(len(groups))]

    def take_report(self) -> dict[str, Metric]:
        """Since the last call: `reward/retries/REASON` over all sources, and what each source says itself."""
        retries = {f"reward/retries/{reason}": Metric(n, reduction="sum") for reason, n in self.retries.items()}
        self.retries.clear()
        return merge_reports([retries, *(source.take_report() for source in self._sources)])

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def __enter__(self) -> WeightedReward:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _queries(self, groups: Iterable[tuple[Prompt, Sequence[Rollout]]]) -> list[str]:
        if self._tokenizer is None:
            return [prompt.text + rollout.text for prompt, rollouts in groups for rollout in rollouts]
        tokens = [list(rollout.token_ids) for _, rollouts in groups for rollout in rollouts]
        return self._tokenizer.batch_decode(tokens, skip_special_tokens=False)

    def _ask(self, source: RewardSource, batch: RewardBatch, sizes: Sequence[int]) -> list[Answer | ScoreFailure]:
        """The source's answer for each group."""
        try:
            return list(_split(self._ask_with_retries(source, batch), sizes))
        except AnswerError as error:
            if self._settings.on_error == "abort":
                raise RewardError(
                    f"reward {source.origin} failed {self._settings.max_retries + 1} times "
                    f"({error.reason}: {error.detail}); mend it, or give --reward.on_error drop_group."
                ) from None
            if error.answer is not None:
                return [_checked(source, part) for part in _split(error.answer, sizes)]
        share = min(max(self._settings.timeout_s / len(sizes), SHORTEST_SHARE_S), self._settings.timeout_s)
        answers: list[Answer | ScoreFailure] = []
        start = 0
        for size in sizes:
            try:
                answers.append(_checked(source, source.ask(batch.part(start, start + size), share)))
            except AnswerError as error:
                answers.append(ScoreFailure(error.reason, f"{source.name}: {error.detail}"))
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
            retry=tenacity.retry_if_exception_type(AnswerError),
            before_sleep=count,
            reraise=True,
        ):
            with attempt:
                answer = source.ask(batch, self._settings.timeout_s)
                _require_finite(answer)
        return answer

    def _combine(self, answers: Sequence[Answer | ScoreFailure]) -> list[Score] | ScoreFailure:
        good = []
        for answer in answers:
            if isinstance(answer, ScoreFailure):
                return answer
            good.append(answer)
        scores = []
        for i in range(len(good[0].rewards)):
            value = sum(w * answer.rewards[i] for w, answer in zip(self._weights, good, strict=True))
            parts = {}
            for name, answer in zip(self.names, good, strict=True):
                parts[name] = answer.rewards[i]
                parts.update({f"{name}/{log}": values[i] for log, values in answer.logs.items()})
            marks = [answer.scores[i] for answer in good if answer.scores is not None]
            notes = {name: a.notes[i] for name, a in zip(self.names, good, strict=True) if a.notes is not None}
            of_turns = [(w, a.turns[i]) for w, a in zip(self._weights, good, strict=True) if a.turns is not None]
            turns = sorted((position, w * reward) for w, fell in of_turns for position, reward in fell)
            filter_value = sum(marks) / len(marks) if marks else None
            scores.append(Score(value, parts, filter_value, notes, tuple(turns)))
        return scores


def _require_finite(answer: Answer) -> None:
    bad = bad_positions(answer)
    if bad:
        detail = f"{len(bad)} of {len(answer.rewards)} rewards or scores are not finite"
        raise AnswerError("not_finite", detail, answer)


def _checked(source: RewardSource, answer: Answer) -> Answer | ScoreFailure:
    try:
        _require_finite(answer)
    except AnswerError as error:
        return ScoreFailure(error.reason, f"{source.name}: {error.detail}")
    return answer


def _split(answer: Answer, sizes: Sequence[int]) -> Iterable[Answer]:
    start = 0
    for size in sizes:
        stop = start + size
        yield Answer(
            answer.rewards[start:stop],
            None if answer.scores is None else answer.scores[start:stop],
            {name: log[start:stop] for name, log in answer.logs.items()},
            None if answer.notes is None else answer.notes[start:stop],
            None if answer.turns is None else answer.turns[start:stop],
        )
        start = stop


def _batch(
    prompts: Sequence[Prompt], queries: list[str], samples: Sequence[tuple[Prompt, Rollout]] = ()
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


def _open(spec: str, name: str, settings: RewardSettings) -> RewardSource:
    if spec.startswith(("http://", "https://")):
        from openrlhf_ext.rewards.http import HttpSource

        return HttpSource(name, spec)
    path = Path(spec).expanduser()
    if path.suffix != ".py":
        raise RewardError(f"reward {spec!r} is neither a Python file (.py) nor an http(s) URL.")
    if not path.is_file():
        raise RewardError(f"reward file {missing_file(path)}")
    return PluginSource(name, path.resolve(), load_timeout_s=settings.load_timeout_s)


def _source_names(specs: Sequence[str]) -> list[str]:
    """The file's stem or the URL's host and port, numbered where several are alike."""
    seen: Counter[str] = Counter()
    names = []
    for spec in specs:
        name = urlsplit(spec).netloc if "://" in spec else Path(spec).stem
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names
