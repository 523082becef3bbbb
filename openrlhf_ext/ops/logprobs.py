"""Log-probabilities of given tokens, without ever holding the logits of a whole batch.

N token positions, H hidden size, V vocabulary, n positions of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


def chunked_logprobs(
    hidden_NH: Tensor,
    lm_head: Callable[[Tensor], Tensor],
    targets_N: Tensor,
    *,
    chunk: int,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log p(target | hidden) in nats, and the entropy of the whole distribution where asked for.

    The head sees at most `chunk` positions at a time, and its logits are computed again in the
    backward pass instead of being kept, but for the last chunk's, where that pass begins: the peak
    is a few times (chunk, V). The softmax is taken in float32 (float64 for float64 logits) of
    `logits / temperature`; both results have that type.

    `lm_head` is called ceil(N / chunk) times, at least once. Where a call is a collective (a module
    whose weight is sharded) the ranks must agree on that number, so gather the weight around this
    function, or call this function from within the forward of the module that owns the weight.
    """
    assert chunk > 0 and temperature > 0
    assert hidden_NH.dim() == 2 and targets_N.shape == hidden_NH.shape[:1]

    def one_chunk(hidden_nH: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor | None]:
        logits_nV = lm_head(hidden_nH)
        logits_nV = logits_nV.to(torch.promote_types(logits_nV.dtype, torch.float32))
        if temperature != 1.0:
            logits_nV = logits_nV / temperature
        return _LogprobEntropy.apply(logits_nV, targets_n, entropy)

    def recomputed_chunk(hidden_nH: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor | None]:
        return checkpoint(one_chunk, hidden_nH, targets_n, use_reentrant=False, preserve_rng_state=False)

    # split, not slices: the backward of a slice is a zero tensor of the full (N, H) for every chunk.
    *earlier, last = zip(hidden_NH.split(chunk), targets_N.split(chunk), strict=True)
    run = recomputed_chunk if torch.is_grad_enabled() else one_chunk
    parts = [*(run(*part) for part in earlier), one_chunk(*last)]
    logp_N = torch.cat([logp_n for logp_n, _ in parts])
    return logp_N, torch.cat([entropy_n for _, entropy_n in parts if entropy_n is not None]) if entropy else None


class _LogprobEntropy(torch.autograd.Function):
    """log p(target) and entropy with a backward of one softmax pass (autograd's own takes three).

    With p = softmax(z) and entropy S: d log p_t / dz = onehot_t - p, dS / dz = -p (log p + S).
    """

    @staticmethod
    def forward(ctx: Any, logits_nV: Tensor, targets_n: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        lse_n = logits_nV.logsumexp(-1)
        logp_n = logits_nV.gather(-1, targets_n[:, None]).squeeze(-1) - lse_n
        entropy_n = None
        if entropy:
            entropy_n = lse_n - (logits_nV - lse_n[:, None]).exp_().mul_(logits_nV).sum(-1)
        ctx.save_for_backward(logits_nV, targets_n, lse_n, entropy_n)
        return logp_n, entropy_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp_n: Tensor, grad_entropy_n: Any) -> tuple[Tensor, None, None]:
        logits_nV, targets_n, lse_n, entropy_n = ctx.saved_tensors
        logp_nV = logits_nV - lse_n[:, None]
        if entropy_n is None:
            grad_nV = logp_nV.exp_().mul_(-grad_logp_n[:, None])
        else:
            weight_nV = (logp_nV + entropy_n[:, None]).mul_(grad_entropy_n[:, None]).add_(grad_logp_n[:, None])
            grad_nV = logp_nV.exp_().mul_(weight_nV).neg_()
        grad_nV.scatter_add_(-1, targets_n[:, None], grad_logp_n[:, None])
        return grad_nV, None, None
