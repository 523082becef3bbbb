"""What a score loses by the length of its answer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthPenalties:
    """`overlong_buffer` tokens before `max_new_tokens` the penalty begins, and reaches `overlong_factor` there.

    `stop_properly`, for answers that did not end by themselves: from 0 to 1 their scores are multiplied
    by it, below 0 it takes their place. None: no such penalty.
    """

    max_new_tokens: int
    overlong_buffer: float | None = None
    overlong_factor: float = 1.0
    stop_properly: float | None = None

    def __post_init__(self) -> None:
        assert self.overlong_buffer is None or 0 < self.overlong_buffer <= self.max_new_tokens
        assert self.stop_properly is None or self.stop_properly <= 1.0


def penalised(scores_B: Tensor, lengths_B: Tensor, truncated_B: Tensor, settings: LengthPenalties) -> Tensor:
    """The scores (B,) after DAPO's soft over-long punishment, then ProRL's penalty for not stopping.

    `lengths_B` are those of the answers in tokens, `truncated_B` (bool) says which were cut off.
    Yu et al. 2025, arXiv:2503.14476, eq. 13; Hu et al. 2025, arXiv:2505.24864.
    """
    if settings.overlong_buffer is not None:
        begin = settings.max_new_tokens - settings.overlong_buffer
        used_B = ((lengths_B - begin) / settings.overlong_buffer).clamp(0.0, 1.0)
        scores_B = scores_B - settings.overlong_factor * used_B.to(scores_B.dtype)
    if settings.stop_properly is None:
        return scores_B
    cut = settings.stop_properly
    return scores_B.where(~truncated_B, scores_B * cut if cut >= 0.0 else scores_B.new_tensor(cut))
