"""Rollouts on their way between processes: a few arrays, however many rollouts they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_ext.types import Rollout

TOKEN_COLUMNS = ("token_ids", "action_mask", "logprobs")
"""A value for each token."""
_OTHERS = tuple(field.name for field in fields(Rollout) if field.name not in TOKEN_COLUMNS)
_others_of = attrgetter(*_OTHERS)


@dataclass(frozen=True, slots=True, eq=False)
class PackedRollouts:
    """N rollouts of T tokens in all. Iterating gives them back, their arrays views of these."""

    offsets: NDArray[np.int64]  # (N + 1,)
    columns: tuple[NDArray[Any], ...]  # (T,) each, in the order of TOKEN_COLUMNS
    others: tuple[tuple[Any, ...], ...]  # the other fields of each, in their order

    @classmethod
    def of(cls, rollouts: Sequence[Rollout]) -> PackedRollouts:
        return cls(
            offsets=np.cumsum([0, *(len(rollout.token_ids) for rollout in rollouts)]),
            columns=tuple(joined([getattr(rollout, name) for rollout in rollouts]) for name in TOKEN_COLUMNS),
            others=tuple(map(_others_of, rollouts)),
        )

    def __len__(self) -> int:
        return len(self.others)

    def __iter__(self) -> Iterator[Rollout]:
        tokens, actions, logprobs = self.columns
        ends = pairwise(self.offsets.tolist())
        for (start, stop), (prompt_id, sample, *others) in zip(ends, self.others, strict=True):
            yield Rollout(prompt_id, sample, tokens[start:stop], actions[start:stop], logprobs[start:stop], *others)


def joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One after the other."""
    return np.concatenate(arrays) if arrays else np.empty(0)
