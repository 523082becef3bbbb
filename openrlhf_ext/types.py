"""The data that flows through the RL loop, as plain frozen values (no torch; numpy only where a rollout is made).

Prompt -> Rollout x n -> ScoredRollout x n -> RolloutGroup; the tensor stages
(TokenBatch, Signals, Experience, TrainShard) live in `openrlhf_ext.batch`.
Nothing is ever recovered by position or by prompt text: a rollout is known by
`(prompt_id, sample)`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "abort"]


class RolloutKey(NamedTuple):
    """What names one rollout within a step."""

    prompt_id: str
    sample: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, tokenized. `id` is unique in its data set and stable over epochs and restarts."""

    id: str
    token_ids: tuple[int, ...]
    text: str
    label: Any = None
    source: str = "default"
    meta: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] = ()  # the conversation that `text` is, where a chat template rendered it


@dataclass(frozen=True, slots=True)
class Score:
    """A finite reward with its named parts; `filter_value` is what dynamic filtering looks at.

    `notes` are words of a source on it, by its name (a judge's verdict, as JSON): kept with the rollout.
    `turns` say where parts of the value fell, in an answer of several turns: (position of the turn's last token in
    `Rollout.token_ids`, that part of `value`), in order. What they leave of the value is of the answer as a whole.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    filter_value: float | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    turns: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        assert math.isfinite(self.value), "a reward is finite"


@dataclass(frozen=True, slots=True)
class ScoreFailure:
    """Why a group could not be scored (after retries). Typed and counted, never a silent zero."""

    reason: Literal["exception", "timeout", "not_finite", "wrong_length", "wrong_type", "crashed"]
    detail: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an environment says of an episode. `turns` are its rewards where they fell: (position of the last token
    of the turn in `Rollout.token_ids`, reward), in order; their sum is `score.value`. `info` are JSON values for reward
    functions, which get them as their column `episode`.
    """

    score: Score
    turns: tuple[tuple[int, float], ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One sampled answer: prompt and response tokens as one sequence of T tokens, in arrays (T,) that are read-only.
    Whatever sequences it is made from, they become int32, bool and float32; an array of that type is not copied.

    `action_mask[t]` says that token t was sampled by the policy; `logprobs[t]` is the
    sampler's log-probability of it (0.0 where it is not an action). `versions` are the
    lowest and highest weight versions that sampled its tokens.

    In an environment several turns are actions, and what stands between them is not. `outcome` is what the
    environment says of it, or why its episode failed; `role` is which player sampled it, in a game of several.
    """

    prompt_id: str
    sample: int
    token_ids: NDArray[np.int32]
    action_mask: NDArray[np.bool_]
    logprobs: NDArray[np.float32]
    text: str
    finish_reason: FinishReason
    versions: tuple[int, int]
    outcome: Outcome | ScoreFailure | None = None
    role: str = ""

    def __post_init__(self) -> None:
        import numpy as np  # here: a command that only explains itself makes no rollout

        for name, dtype in (("token_ids", np.int32), ("action_mask", np.bool_), ("logprobs", np.float32)):
            given = getattr(self, name)
            array = np.asarray(given, dtype)
            if array.flags.writeable:
                array = array.view()
                array.flags.writeable = False
            if array is not given:
                object.__setattr__(self, name, array)
        assert len(self.token_ids) == len(self.action_mask) == len(self.logprobs), "unequal lengths"
        assert len(self.token_ids) and not self.action_mask[0], "the prompt is never an action"

    def __reduce__(self) -> tuple[type[Rollout], tuple[Any, ...]]:
        # Through the constructor: arrays that arrive over a pipe could be written to.
        return Rollout, tuple(getattr(self, each.name) for each in fields(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rollout):
            return NotImplemented
        pairs = ((getattr(self, each.name), getattr(other, each.name)) for each in fields(self))
        return all(a.tobytes() == b.tobytes() if hasattr(a, "tobytes") else a == b for a, b in pairs)

    def __hash__(self) -> int:
        return hash(self.key)

    @classmethod
    def of_turn(cls, prompt: Sequence[int], answer: Sequence[int], logprobs: Sequence[float], **others: Any) -> Rollout:
        """Of a prompt's tokens and the answer's, which have log-probs; `others` are the other fields."""
        import numpy as np

        assert len(logprobs) == len(answer), "one log-prob for each sampled token"
        return cls(
            token_ids=np.array([*prompt, *answer], np.int32),
            action_mask=np.arange(len(prompt) + len(answer)) >= len(prompt),
            logprobs=np.array([*[0.0] * len(prompt), *logprobs], np.float32),
            **others,
        )

    @property
    def key(self) -> RolloutKey:
        return RolloutKey(self.prompt_id, self.sample)

    @property
    def response_length(self) -> int:
        import numpy as np

        return int(np.count_nonzero(self.action_mask))


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    rollout: Rollout
    score: Score


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The n scored samples of one prompt; in a game of several players, those of all of them."""

    prompt: Prompt
    members: tuple[ScoredRollout, ...]

    def __post_init__(self) -> None:
        assert all(m.rollout.prompt_id == self.prompt.id for m in self.members), "a stranger in the group"

    def scores_by_role(self) -> dict[str, list[Score]]:
        """Of the members, by the roles they played; where there are no roles, all under the empty one."""
        by_role: dict[str, list[Score]] = {}
        for member in self.members:
            by_role.setdefault(member.rollout.role, []).append(member.score)
        return by_role


@dataclass(frozen=True, slots=True)
class FailedGroup:
    """The n samples of a prompt that could not be scored, and why."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    failure: ScoreFailure


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `seed` belongs to the step; each request's own is `derive_seed(seed, id, sample)`."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    max_new_tokens: int = 1024
    max_total_tokens: int | None = None  # prompt and response together
    stop: tuple[str, ...] = ()
    seed: int = 0


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all parts and on nothing else (run seed, step, prompt id, sample)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


Reduction = Literal["mean", "sum", "max", "min", "last"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that knows how to be merged: over micro-batches, ranks and optimizer steps.

    For `mean`, `total / weight` is the value; for `sum` the total; for `max`, `min`, `last`
    the total is the value itself.
    """

    total: float
    weight: float = 1.0
    reduction: Reduction = "mean"

    @property
    def value(self) -> float:
        if self.reduction != "mean":
            return self.total
        return self.total / self.weight if self.weight else math.nan

    def merge(self, other: Metric) -> Metric:
        assert self.reduction == other.reduction, "one metric, one reduction"
        if self.reduction in ("mean", "sum"):
            return Metric(self.total + other.total, self.weight + other.weight, self.reduction)
        total = {"max": max, "min": min}.get(self.reduction, lambda _, b: b)(self.total, other.total)
        return Metric(total, self.weight + other.weight, self.reduction)


Report = Mapping[str, Metric]


def merge_reports(reports: Iterable[Report]) -> dict[str, Metric]:
    """Merge reports key by key, in order (the order matters for `last` only)."""
    merged: dict[str, Metric] = {}
    for report in reports:
        for name, metric in report.items():
            merged[name] = merged[name].merge(metric) if name in merged else metric
    return merged


def mean_metric(values: Sequence[float]) -> Metric:
    return Metric(float(sum(values)), float(len(values)), "mean")
