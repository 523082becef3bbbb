"""Per-token losses to one number that adds up over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from openrlhf_ext.batch.types import Denominators


def _token_mean(loss_BA: Tensor, action_BA: Tensor, denominators: Denominators, max_tokens: int | None) -> Tensor:
    """Every token counts the same (DAPO, Yu et al. 2025, arXiv:2503.14476)."""
    return loss_BA.sum() / denominators.tokens


def _seq_mean_token_mean(
    loss_BA: Tensor, action_BA: Tensor, denominators: Denominators, max_tokens: int | None
) -> Tensor:
    """Every sequence counts the same, its tokens averaged (GRPO, Shao et al. 2024, arXiv:2402.03300)."""
    return (loss_BA.sum(1) / action_BA.sum(1).clamp(min=1)).sum() / denominators.sequences


def _seq_mean_token_sum_norm(
    loss_BA: Tensor, action_BA: Tensor, denominators: Denominators, max_tokens: int | None
) -> Tensor:
    """Every token counts the same, whatever the lengths of this step (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783).

    The sums over sequences are divided by a constant, the tokens that an answer may have, and averaged.
    """
    assert max_tokens is not None, "seq-mean-token-sum-norm divides by max_tokens"
    return loss_BA.sum() / (denominators.sequences * max_tokens)


AGGREGATIONS: Mapping[str, Callable[[Tensor, Tensor, Denominators, int | None], Tensor]] = {
    "token-mean": _token_mean,
    "seq-mean-token-mean": _seq_mean_token_mean,
    "seq-mean-token-sum-norm": _seq_mean_token_sum_norm,
}


def aggregate(
    loss_BA: Tensor,
    action_BA: Tensor,
    denominators: Denominators,
    mode: str = "token-mean",
    max_tokens: int | None = None,
) -> Tensor:
    """A scalar: this micro-batch's part of the step's mean. A micro-batch without actions gives 0.

    The denominators are those of the whole optimizer step, so the parts of all micro-batches and
    ranks are summed, never averaged. What the loss holds off actions is not read. `max_tokens`, the
    tokens that an answer may have, is read by seq-mean-token-sum-norm only.
    """
    return AGGREGATIONS[mode](loss_BA.where(action_BA, 0.0), action_BA, denominators, max_tokens)
