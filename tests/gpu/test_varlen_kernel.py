"""torch's own kernel for packed rows gives the log-probs and gradients that padded rows have."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from openrlhf_ext.models.causal_lm import PolicyModel
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.models.varlen import TORCH_VARLEN

CONFIG = Qwen3Config(
    vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64,
)  # fmt: skip


def test_packed_rows_have_the_log_probs_and_gradients_of_padded_ones():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG, attn_implementation="sdpa", dtype=torch.bfloat16).cuda()
    lengths_B = torch.tensor([130, 7, 64], device="cuda")
    tokens_BT = torch.randint(0, 512, (3, 130), device="cuda")
    action_BA = torch.arange(1, 130, device="cuda") < lengths_B[:, None]

    def run(attention: str, packing: bool) -> tuple[torch.Tensor, torch.Tensor]:
        one = copy.deepcopy(model)
        one.set_attn_implementation(attention)
        spec = ModelSpec("", dtype="bf16", attn_implementation=attention, packing=packing)
        logp_BA = PolicyModel(one, spec)(tokens_BT, lengths_B, action_BA).logp_BA
        logp_BA.sum().backward()
        return logp_BA.detach(), torch.cat([p.grad.float().flatten() for p in one.parameters()])

    padded, gradient = run("sdpa", packing=False)
    packed, packed_gradient = run(TORCH_VARLEN, packing=True)
    torch.testing.assert_close(packed, padded, rtol=0, atol=0.05)
    assert (packed_gradient - gradient).norm() / gradient.norm() < 0.02
