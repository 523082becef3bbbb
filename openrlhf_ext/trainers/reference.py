"""DPO's reference: how probable the model before training found each answer, by the cheapest way that is right.

Shapes as in `batch.types`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from openrlhf_ext.batch.types import TokenBatch
from openrlhf_ext.ports import LogprobRole, SupervisedRole
from openrlhf_ext.track.reference_cache import ReferenceCache, answer_key
from openrlhf_ext.trainers.preference import sums_as_column

Progress = Callable[[int, int], None]
"""Called with (answers done, answers there are)."""


class Reference(Protocol):
    def column(self, batch: TokenBatch) -> Tensor:
        """(B, A) float32 whose sum over a row's actions is the answer's log-prob under the reference."""
        ...


class BaseReference:
    """The model in training, with its adapters as training found them: nothing is kept and nothing else is loaded."""

    def __init__(self, model: SupervisedRole) -> None:
        self._model = model

    def column(self, batch: TokenBatch) -> Tensor:
        return self._model.logprobs(batch, adapters=False)


class ModelReference:
    """A second, frozen model."""

    def __init__(self, model: LogprobRole) -> None:
        self._model = model

    def column(self, batch: TokenBatch) -> Tensor:
        return self._model.logprobs(batch)


class CachedReference:
    """Log-probs that were computed before training began: so many answers now, the others were on disk."""

    def __init__(self, cache: ReferenceCache, computed: int = 0) -> None:
        self._cache = cache
        self.computed = computed

    def column(self, batch: TokenBatch) -> Tensor:
        return sums_as_column(torch.tensor([self._cache[key] for key in answer_keys(batch)]), batch.action_BA)

    @staticmethod
    def fill(
        cache: ReferenceCache, model: LogprobRole, batches: Sequence[TokenBatch], progress: Progress
    ) -> CachedReference:
        """Compute what the cache does not know yet. `model` must not have learned anything."""
        total, done, computed = sum(batch.rows for batch in batches), 0, 0
        for batch in batches:
            keys = answer_keys(batch)
            done += batch.rows
            if missing := cache.missing(keys):
                sums = model.logprobs(batch).double().sum(1).tolist()
                cache.add({keys[index]: sums[index] for index in missing})
                computed += len(missing)
                progress(done, total)
        return CachedReference(cache, computed)


def answer_keys(batch: TokenBatch) -> list[str]:
    """What each row is known by in a cache, whatever it is padded with or batched with."""
    prompts = (batch.action_BA.int().argmax(dim=1) + 1).tolist()
    rows = zip(batch.tokens_BT.tolist(), batch.lengths_B.tolist(), prompts, strict=True)
    return [answer_key(tokens[:length], prompt) for tokens, length, prompt in rows]
