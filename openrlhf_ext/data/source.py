"""The order in which prompts are trained on: shuffled per epoch, resumable at any prompt."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from openrlhf_ext.errors import DataError
from openrlhf_ext.types import Prompt, derive_seed


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """The prompts of one round of generation. All are of one epoch, so none is there twice."""

    epoch: int
    prompts: tuple[Prompt, ...]


class PromptSource:
    """Hands out prompts round by round, `episodes` times through the data.

    A round is what is generated at once: `round_size` prompts, one step's `batch_size` where it is not given, else
    a multiple of it. The order of epoch e depends on the seed and e only. Without `drop_last` the last short batch
    of an epoch is a step of its own: 638 prompts at a batch size of 64 are ten steps.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        batch_size: int,
        round_size: int | None = None,
        episodes: int = 1,
        seed: int = 42,
        drop_last: bool = False,
    ) -> None:
        assert batch_size > 0 and episodes > 0
        assert round_size is None or (round_size > 0 and round_size % batch_size == 0), "a round feeds whole steps"
        if not prompts:
            raise DataError("there are no prompts to train on: give a data set with at least one.")
        if drop_last and len(prompts) < batch_size:
            raise DataError(
                f"{len(prompts)} prompts are fewer than one batch of {batch_size}, and --data.drop_last drops them: "
                "leave that flag out, or lower --rollout.batch_size."
            )
        self._prompts = tuple(prompts)
        self.batch_size = batch_size
        self.round_size = round_size or batch_size
        self._episodes = episodes
        self._seed = seed
        self._drop_last = drop_last
        digest = hashlib.blake2b(digest_size=16)
        for prompt in self._prompts:
            digest.update(prompt.id.encode())
            digest.update(array("q", prompt.token_ids).tobytes())
        self._fingerprint = digest.hexdigest()
        self._epoch = 0
        self._position = 0  # prompts already taken of this epoch
        self._consumed = 0
        self._order = self._shuffled(0)

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; fewer where `take` is used."""
        full, rest = divmod(len(self._prompts), self.batch_size)
        return full + (1 if rest and not self._drop_last else 0)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self._episodes

    @cached_property
    def by_id(self) -> Mapping[str, Prompt]:
        return {prompt.id: prompt for prompt in self._prompts}

    @property
    def exhausted(self) -> bool:
        """Whether no further batch will come."""
        return self._epoch + 1 >= self._episodes and self._epoch_is_over

    @property
    def _epoch_is_over(self) -> bool:
        left = len(self._prompts) - self._position
        return left == 0 or (self._drop_last and left < self.batch_size)

    def next_batch(self) -> PromptBatch | None:
        """The next round's prompts, from the next epoch where this one is used up; None after the last."""
        if self.exhausted:
            return None
        if self._epoch_is_over:
            self._epoch += 1
            self._position = 0
            self._order = self._shuffled(self._epoch)
        left = len(self._prompts) - self._position
        if self._drop_last:
            left -= left % self.batch_size
        return self.take(min(self.round_size, left))

    def take(self, n: int) -> PromptBatch:
        """Up to n further prompts of the present epoch (fewer, or none, at its end).

        This refills a round of which some prompts were filtered out. It never crosses into the next
        epoch: there a prompt of the same round could come again, under the same rollout keys.
        """
        chosen = self._order[self._position : self._position + n]
        self._position += len(chosen)
        self._consumed += len(chosen)
        return PromptBatch(self._epoch, tuple(self._prompts[index] for index in chosen))

    def state(self) -> dict[str, Any]:
        """Where the source stands, as JSON-able values."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "consumed": self._consumed,
            "seed": self._seed,
            "fingerprint": self._fingerprint,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue after `state`. Raises DataError if the data set or the seed is another one."""
        if state["fingerprint"] != self._fingerprint:
            raise DataError(
                "the prompts are not those that the checkpoint was trained on (another data set, template or order): "
                "give the same data, or start anew without --ckpt.load_enable."
            )
        if state["seed"] != self._seed:
            raise DataError(
                f"the checkpoint was trained with the seed {state['seed']} and this run has {self._seed}, "
                "so the prompts would come in another order: give the same --train.seed."
            )
        self._epoch = int(state["epoch"])
        self._position = int(state["position"])
        self._consumed = int(state["consumed"])
        self._order = self._shuffled(self._epoch)

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._prompts)))
        random.Random(derive_seed(self._seed, "epoch", epoch)).shuffle(order)
        return order
