"""The tensor stages of the loop. Shape suffixes, here and in `ops`, `models`, `trainers`:

B sequences (rows), T tokens of the longest row, A = T - 1 action positions: position a
predicts token a + 1, so `action_BA[b, a]` says that token `a + 1` of row b was sampled.
Rows are padded on the right; causal attention then never sees the padding.
Float columns are float32, finite on actions and exactly zero elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

from openrlhf_ext.types import RolloutKey

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Padded rollouts of one step, on the CPU."""

    keys: tuple[RolloutKey, ...]
    tokens_BT: Tensor  # int32: half of what a model reads
    lengths_B: Tensor  # int64, number of real tokens of each row
    action_BA: Tensor  # bool
    sampler_logp_BA: Tensor  # float32, the sampler's own log-probs

    @property
    def rows(self) -> int:
        return self.tokens_BT.shape[0]


@dataclass(frozen=True, slots=True)
class Signals:
    """What the models said about a TokenBatch (None: not needed in this configuration)."""

    old_logp_BA: Tensor | None = None
    ref_logp_BA: Tensor | None = None
    values_BA: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Experience:
    """A TokenBatch with all that the update needs.

    `columns` are (B, A) float tensors by name: `advantages`, `returns` and `sampler_logp` always, `old_logp`,
    `ref_logp` and `values` (the critic's, before the update) where an objective reads them.
    """

    batch: TokenBatch
    columns: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows, cut to their own longest length. `rows` are their indices in the batch. Tokens are int64 where a model
    reads them, int32 in a share's block.

    A dummy (see `is_dummy`) keeps ranks in step under ZeRO-3: it has rows of tokens but no
    actions, so its loss and gradient are exactly zero.
    """

    rows: tuple[int, ...]
    tokens_BT: Tensor
    lengths_B: Tensor
    action_BA: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_dummy(self) -> bool:
        return not self.rows


@dataclass(frozen=True, slots=True)
class Denominators:
    """Global over the whole optimizer step (all ranks, all micro-batches), computed once by the splitter."""

    tokens: float  # action tokens
    sequences: float  # rows with at least one action


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's rows in one piece, micro-batch after micro-batch: so it is cut out of the batch, sent, and answered.

    `sizes` are the rows of each micro-batch; 0 is a dummy. A rank without any row has one dummy for a block.
    """

    block: MicroBatch
    sizes: tuple[int, ...]

    @property
    def micro_batches(self) -> tuple[MicroBatch, ...]:
        stops = tuple(accumulate(self.sizes))
        return tuple(self._part(stop - size, stop) for size, stop in zip(self.sizes, stops, strict=True))

    def _part(self, start: int, stop: int) -> MicroBatch:
        block = self.block
        if start == stop:
            return self._dummy()
        width = int(block.lengths_B[start:stop].max())
        return MicroBatch(
            rows=block.rows[start:stop],
            tokens_BT=block.tokens_BT[start:stop, :width].long(),
            lengths_B=block.lengths_B[start:stop],
            action_BA=block.action_BA[start:stop, : width - 1].contiguous(),
            columns={name: column[start:stop, : width - 1].contiguous() for name, column in block.columns.items()},
        )

    def _dummy(self) -> MicroBatch:
        """Two tokens of a row, neither of them an action: the cheapest forward there is."""
        block, row = self.block, int(self.block.lengths_B.argmax())
        width = min(2, int(block.lengths_B[row]))
        return MicroBatch(
            rows=(),
            tokens_BT=block.tokens_BT[row : row + 1, :width].long(),
            lengths_B=block.lengths_B[row : row + 1].clamp(max=width),
            action_BA=block.action_BA[row : row + 1, : width - 1] & False,
            columns={name: column[row : row + 1, : width - 1] * 0 for name, column in block.columns.items()},
        )


@dataclass(frozen=True, slots=True)
class TrainShard:
    """One rank's part of one optimizer step. Every rank has the same number of micro-batches."""

    share: Share
    denominators: Denominators

    @property
    def micro_batches(self) -> tuple[MicroBatch, ...]:
        return self.share.micro_batches


OptimizerStep = tuple[TrainShard, ...]  # one shard per rank
