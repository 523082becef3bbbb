"""What every source of rewards is to the trainer, and how all of them are called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from openrlhf_ext.rewards.answer import Answer
from openrlhf_ext.rewards.process import RewardBatch
from openrlhf_ext.types import Report

Normalisation = Literal["none", "batch", "group"]


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """How a server is asked: rows of a request (None: a whole batch), requests at a time, and its circuit breaker.

    After `failures_to_open` requests in a row have failed nothing is sent for `cooldown_s` seconds.
    """

    batch_size: int | None = None
    concurrency: int = 8
    failures_to_open: int = 5
    cooldown_s: float = 30.0


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """What the rules and verifiers of ours look for (see `rules`).

    Either `format_pattern`, a regular expression of the whole answer, or `format_tags`, its tags in order.
    `length_range` is in tokens; `verify_timeout_s` is what one answer may take.
    """

    format_pattern: str | None = None
    format_tags: tuple[str, ...] = ()
    length_range: tuple[int, int] | None = None
    answer_pattern: str | None = None
    verify_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """How sources are called. Times in seconds.

    `weights` has one entry per source, () means 1 each; `normalize` one per source, or one for all, () means none.
    """

    on_error: Literal["abort", "drop_group"] = "abort"
    weights: tuple[float, ...] = ()
    timeout_s: float = 180.0
    load_timeout_s: float = 120.0
    max_retries: int = 2
    backoff_s: float = 1.0  # before the first retry; doubles
    normalize: tuple[Normalisation, ...] = ()
    http: HttpSettings = field(default_factory=HttpSettings)
    rules: RuleSettings = field(default_factory=RuleSettings)


class RewardSource(Protocol):
    """One reward file, server, rule or model."""

    name: str
    origin: str
    signature: str

    def start(self) -> None: ...

    def ask(self, batch: RewardBatch, timeout_s: float) -> Answer:
        """The answer for a batch. Raises AnswerError where there is none, or only for some of its rows."""
        ...

    def take_report(self) -> Report: ...

    def close(self) -> None: ...


class RoleSource(RewardSource, Protocol):
    """A model on the cluster, which is started later than files and servers: it is connected before it is asked."""

    def connect(self, roles: Any) -> None:
        """`roles` are the living roles of the run; it takes its own from them."""
        ...
