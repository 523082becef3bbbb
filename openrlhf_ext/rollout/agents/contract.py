"""What a user writes to have answers of several turns: an `Agent`, whose episodes talk with the policy.

Standard library only: the process of an agent's file imports it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True, slots=True)
class Task:
    """What an episode is about: a row of the prompts. `sample` is which of the prompt's episodes it is."""

    prompt: str
    label: Any = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] = ()
    prompt_id: str = ""
    sample: int = 0
    seed: int = 0  # of this episode: draw from it, and a resumed run draws the same


@dataclass(frozen=True, slots=True)
class Said:
    """One turn of the policy, decoded without special tokens. `cut`: it ended for want of room, not by itself."""

    text: str
    cut: bool


class Talk(Protocol):
    """One conversation with the policy, recorded token by token: what the policy says are actions, the rest is not.

    A talk in which the policy said anything becomes one rollout.
    """

    def tell(self, text: str) -> None:
        """Text of the environment, as it stands (chat markup included, where the model wants any)."""
        ...

    def tell_messages(self, messages: Sequence[Mapping[str, str]]) -> None:
        """The same by the policy's chat template; the first call opens the conversation, with the generation prompt."""
        ...

    async def sample(self, *, max_new_tokens: int | None = None, stop: Sequence[str] = ()) -> Said:
        """Let the policy speak. Raises EpisodeOver where no room is left for a single token."""
        ...

    def reward(self, value: float) -> None:
        """Give (add) a reward to the policy's latest turn of this talk."""
        ...


class EpisodeOver(Exception):
    """No room is left in a talk: what was said so far is the episode. An agent may catch it."""


class Agent(ABC):
    """One episode; a new instance plays each. `roles` are the players, each with a talk of its own."""

    roles: ClassVar[tuple[str, ...]] = ("",)

    @abstractmethod
    async def play(self, task: Task, talks: Mapping[str, Talk]) -> Mapping[str, Any] | None:
        """Play to the end. What is returned are JSON values for reward functions (their column `episode`).

        An exception, or more time than --agent.timeout_s, fails the episode, which is counted.
        """
