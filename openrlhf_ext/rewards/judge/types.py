"""What a language model is asked and answers, whoever runs it: an engine of ours or another's endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from openrlhf_ext.types import FinishReason


@dataclass(frozen=True, slots=True)
class Question:
    """One request: a conversation that ends with a user's turn, and how to answer it.

    `schema` is a JSON schema that decoding enforces; without one the answer is free text.
    """

    messages: Sequence[Mapping[str, str]]  # {"role", "content"}
    schema: Mapping[str, Any] | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer's text without special tokens, and what it cost in tokens."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    answer_tokens: int


WhyNoReply: TypeAlias = Literal["timeout", "busy", "crashed", "refused", "too_long"]
"""`busy`: whoever is asked said that it was too much. `refused`, `too_long`: this question never gets one."""


@dataclass(frozen=True, slots=True)
class NoReply:
    """Why a question has no answer, after what retries the model's side makes itself."""

    reason: WhyNoReply
    detail: str


class LanguageModel(Protocol):
    """What answers questions. One caller at a time; the questions of a call are answered concurrently."""

    @property
    def name(self) -> str:
        """Of its weights, as a cache of its answers is keyed."""
        ...

    def reply(self, questions: Sequence[Question]) -> list[Reply | NoReply]:
        """In the order of the questions. The same question gets the same answer, alone or among others."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A language model that counts what happened while it answered."""

    def take_counts(self) -> Mapping[str, float]:
        """Since the last call, by names that go under `judge/`."""
        ...
