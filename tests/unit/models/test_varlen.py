"""What stands around torch's kernel; the kernel itself runs on a GPU only (tests/gpu/test_varlen_kernel.py)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, Qwen3Config

from openrlhf_ext.models import varlen
from openrlhf_ext.models.causal_lm import PolicyModel
from openrlhf_ext.models.spec import ModelSpec

SIZE = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
CONFIGS = {"full": Qwen3Config(**SIZE), "sliding": Gemma2Config(**SIZE, sliding_window=4)}


def slow_kernel(
    query_SHD: Tensor, key_SGD: Tensor, value_SGD: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """Row by row, as torch documents `varlen_attn`."""
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert cu_seq_q.dtype == torch.int32
    left, right = window_size
    assert right == 0
    rows = []
    for start, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        query, key, value = (states[start:end].transpose(0, 1) for states in (query_SHD, key_SGD, value_SGD))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (distance >= 0) & ((distance <= left) if left >= 0 else True)
        answer = F.scaled_dot_product_attention(query, key, value, seen, scale=scale, enable_gqa=enable_gqa)
        rows.append(answer.transpose(0, 1))
    return torch.cat(rows)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("lengths", [[9, 2, 6], [7]])
def test_packed_rows_have_the_log_probs_of_rows_alone(name: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(varlen, "varlen_attn", slow_kernel)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="sdpa", dtype=torch.float32).eval()
    lengths_B = torch.tensor(lengths)
    tokens_BT = torch.randint(3, 32, (len(lengths), max(lengths)))
    action_BA = torch.arange(1, max(lengths)) < lengths_B[:, None]
    with torch.no_grad():
        plain = PolicyModel(copy.deepcopy(model), ModelSpec("", dtype="fp32")).eval()
        padded = plain(tokens_BT, lengths_B, action_BA).logp_BA
        model.set_attn_implementation(varlen.TORCH_VARLEN)
        spec = ModelSpec("", dtype="fp32", attn_implementation=varlen.TORCH_VARLEN, packing=True)
        packed = PolicyModel(model, spec).eval()(tokens_BT, lengths_B, action_BA).logp_BA
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
