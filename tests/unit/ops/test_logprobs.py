"""Chunked log-probs against a direct log_softmax, and what they hold in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from openrlhf_ext.ops.logprobs import chunked_logprobs

H, V = 5, 11


def inputs(n: int, seed: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden_NH = torch.randn(n, H, generator=generator, dtype=dtype).requires_grad_()
    weight_VH = torch.randn(V, H, generator=generator, dtype=dtype).requires_grad_()
    return hidden_NH, weight_VH, torch.randint(V, (n,), generator=generator)


def direct(hidden_NH, weight_VH, targets_N, temperature):
    logp_NV = torch.log_softmax(hidden_NH @ weight_VH.T / temperature, -1)
    return logp_NV.gather(1, targets_N[:, None]).squeeze(1), -(logp_NV.exp() * logp_NV).sum(1)


@given(st.integers(0, 20), st.integers(1, 25), st.sampled_from([1.0, 0.6, 1.7]), st.booleans(), st.integers(0, 999))
def test_values_and_gradients_equal_the_direct_ones(n, chunk, temperature, entropy, seed):
    hidden_NH, weight_VH, targets_N = inputs(n, seed)
    ours = chunked_logprobs(
        hidden_NH, lambda h: h @ weight_VH.T, targets_N, chunk=chunk, temperature=temperature, entropy=entropy
    )
    theirs = direct(hidden_NH, weight_VH, targets_N, temperature)
    up_N = torch.randn(n, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    if entropy:
        loss, reference = ((up_N * x).sum() + (up_N.flip(0) * y).sum() for x, y in (ours, theirs))
        torch.testing.assert_close(ours[1], theirs[1])
    else:
        loss, reference = (up_N * ours[0]).sum(), (up_N * theirs[0]).sum()
        assert ours[1] is None
    torch.testing.assert_close(ours[0], theirs[0])
    for got, want in zip(
        torch.autograd.grad(loss, [hidden_NH, weight_VH]),
        torch.autograd.grad(reference, [hidden_NH, weight_VH]),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_entropy_as_a_metric_only_does_not_disturb_the_gradient():
    hidden_NH, weight_VH, targets_N = inputs(7, 0)

    def gradient(entropy):
        logp_N, _ = chunked_logprobs(hidden_NH, lambda h: h @ weight_VH.T, targets_N, chunk=3, entropy=entropy)
        return torch.autograd.grad(logp_N.sum(), hidden_NH)[0]

    torch.testing.assert_close(gradient(True), gradient(False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_softmax_is_taken_in_float32(dtype):
    hidden_NH, weight_VH, targets_N = inputs(9, 3, dtype)
    with torch.no_grad():
        logp_N, entropy_N = chunked_logprobs(hidden_NH, lambda h: h @ weight_VH.T, targets_N, chunk=4, entropy=True)
        logits_NV = (hidden_NH @ weight_VH.T).double()
    assert logp_N.dtype == entropy_N.dtype == torch.float32
    want_N = torch.log_softmax(logits_NV, -1).gather(1, targets_N[:, None]).squeeze(1)
    torch.testing.assert_close(logp_N.double(), want_N, atol=2e-6, rtol=1e-6)


def test_large_logits_stay_finite():
    hidden_NH = torch.full((2, 1), 1e4, requires_grad=True)
    weight_VH = torch.tensor([[1.0], [-1.0], [0.0]])
    logp_N, entropy_N = chunked_logprobs(
        hidden_NH, lambda h: h @ weight_VH.T, torch.tensor([0, 1]), chunk=1, entropy=True
    )
    torch.testing.assert_close(logp_N, torch.tensor([0.0, -2e4]))
    (logp_N.sum() + entropy_N.sum()).backward()
    assert torch.isfinite(hidden_NH.grad).all()


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gave, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_no_tensor_larger_than_one_chunk_of_logits(grad, entropy):
    n, h, v, chunk = 64, 3, 500, 8
    hidden_NH, weight_VH = torch.randn(n, h, requires_grad=True), torch.randn(v, h, requires_grad=True)
    seen = []

    def lm_head(hidden_nH):
        seen.append(len(hidden_nH))
        return hidden_nH @ weight_VH.T

    with LargestTensor() as watch, torch.set_grad_enabled(grad):
        logp_N, _ = chunked_logprobs(hidden_NH, lm_head, torch.zeros(n, dtype=torch.long), chunk=chunk, entropy=entropy)
        if grad:
            logp_N.sum().backward()
    assert watch.largest == chunk * v
    # a gradient costs each chunk once more, but for the last
    assert seen == [chunk] * (2 * (n // chunk) - 1 if grad else n // chunk)


def test_only_the_last_logits_are_kept_for_the_backward():
    """What autograd saves between forward and backward: the weight, and one chunk with the vocabulary in it."""
    hidden_NH, weight_VH, targets_N = inputs(12, 1)
    saved = []

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chunked_logprobs(hidden_NH, lambda h: h @ weight_VH.T, targets_N, chunk=4)
    assert [shape for shape in saved if V in shape and shape != tuple(weight_VH.T.shape)] == [(4, V)]


def test_the_head_is_called_even_without_positions():
    """Under ZeRO-3 the call is a collective: a rank that has only a dummy takes part in it."""
    hidden_NH, weight_VH, targets_N = inputs(0, 0)
    calls = []

    def lm_head(hidden_nH):
        calls.append(len(hidden_nH))
        return hidden_nH @ weight_VH.T

    logp_N, _ = chunked_logprobs(hidden_NH, lm_head, targets_N, chunk=4)
    assert logp_N.shape == (0,) and calls == [0]
    logp_N.sum().backward()
    assert not weight_VH.grad.any()
