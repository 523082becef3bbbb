from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GPT2Config, GraniteConfig, Qwen3Config

from openrlhf_ext.errors import DataError
from openrlhf_ext.models.causal_lm import PolicyModel, logit_transform
from openrlhf_ext.models.spec import ModelSpec

SIZE = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "qwen3 tied": Qwen3Config(**SIZE, head_dim=8, tie_word_embeddings=True),
    "qwen3 untied": Qwen3Config(**SIZE, head_dim=8, tie_word_embeddings=False),
    "gemma2 capped, sliding": Gemma2Config(**SIZE, head_dim=8, final_logit_softcapping=2.0, sliding_window=4),
    "cohere scaled": CohereConfig(**SIZE, logit_scale=0.25),
    "granite scaled": GraniteConfig(**SIZE, logits_scaling=4.0),
}


def plain(config) -> nn.Module:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32).eval()


def policy(config, **fields) -> PolicyModel:
    return PolicyModel(plain(config), ModelSpec("", dtype="fp32", logprob_chunk=3, **fields)).eval()


def batch(rows, seed=0):
    """Rows given as (prompt length, response length)."""
    lengths_B = torch.tensor([p + r for p, r in rows])
    longest = int(lengths_B.max())
    tokens_BT = torch.randint(3, 32, (len(rows), longest), generator=torch.Generator().manual_seed(seed))
    position_T = torch.arange(longest)
    prompts_B = torch.tensor([p for p, _ in rows])
    action_BA = (position_T[1:] >= prompts_B[:, None]) & (position_T[1:] < lengths_B[:, None])
    return tokens_BT, lengths_B, action_BA


ROWS = [(2, 5), (4, 1), (3, 9), (1, 0)]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_and_entropies_equal_the_full_logits(name, packing):
    """One row at a time, unpadded, through the plain model: padding, packing and chunks change nothing."""
    model, tokens = plain(CONFIGS[name]), batch(ROWS)
    output = policy(CONFIGS[name], packing=packing)(*tokens, temperature=0.7, entropy=True)
    for row, (prompt, response) in enumerate(ROWS):
        end = prompt + response
        logits = model(tokens[0][row : row + 1, :end]).logits[0, :-1] / 0.7
        logp = logits.log_softmax(-1)
        expected = logp.gather(-1, tokens[0][row, 1:end, None]).squeeze(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        span = slice(prompt - 1, end - 1)
        torch.testing.assert_close(output.logp_BA[row, span], expected[span], rtol=0, atol=2e-5)
        torch.testing.assert_close(output.entropy_BA[row, span], entropy[span], rtol=0, atol=2e-5)
    assert not output.logp_BA[~tokens[2]].any() and not output.entropy_BA[~tokens[2]].any()
    assert output.logp_BA.dtype == torch.float32


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), min_size=2, max_size=5), other=st.integers(0, 99))
def test_a_packed_row_does_not_see_its_neighbours(rows, other):
    """Changing every other row leaves a row's log-probs as they were, to the last bit."""
    model = policy(CONFIGS["qwen3 tied"], packing=True)
    tokens_BT, lengths_B, action_BA = batch([*rows, (2, 3)])
    changed_BT = batch([*rows, (2, 3)], seed=1000 + other)[0]
    changed_BT[-1] = tokens_BT[-1]
    with torch.no_grad():
        before = model(tokens_BT, lengths_B, action_BA).logp_BA
        after = model(changed_BT, lengths_B, action_BA).logp_BA
    assert torch.equal(before[-1], after[-1])


def test_padding_is_never_read():
    model = policy(CONFIGS["qwen3 tied"])
    tokens_BT, lengths_B, action_BA = batch(ROWS)
    changed_BT = torch.where(torch.arange(tokens_BT.shape[1]) < lengths_B[:, None], tokens_BT, 31)
    with torch.no_grad():
        assert torch.equal(
            model(tokens_BT, lengths_B, action_BA).logp_BA, model(changed_BT, lengths_B, action_BA).logp_BA
        )


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
def test_a_micro_batch_without_actions_reaches_every_parameter_with_zero(packing, entropy):
    model = policy(CONFIGS["qwen3 untied"], packing=packing).train()
    tokens_BT, lengths_B, action_BA = batch(ROWS)
    output = model(tokens_BT, lengths_B, torch.zeros_like(action_BA), entropy=entropy)
    assert not output.logp_BA.any() and (output.entropy_BA is not None) == entropy
    sum(part.sum() for part in output if part is not None).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


@pytest.mark.parametrize(
    "fields", [{"gradient_checkpointing": True}, {"gradient_checkpointing": True, "reentrant": True}]
)
def test_checkpointing_gives_the_same_gradient(fields):
    gradients = []
    for spec in ({}, fields):
        model = policy(CONFIGS["qwen3 tied"], **spec).train()
        model(*batch(ROWS), entropy=True).logp_BA.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-6)


def test_the_logits_of_a_batch_never_exist_at_once(monkeypatch):
    model = policy(CONFIGS["qwen3 tied"])
    seen = []
    monkeypatch.setattr(model.head, "finish", lambda logits: seen.append(logits.shape[0]) or logits)
    model(*batch(ROWS))
    assert sum(seen) == sum(response for _, response in ROWS) and max(seen) == 3


def test_the_model_still_generates():
    model = policy(CONFIGS["qwen3 tied"]).model
    assert model.generate(torch.tensor([[3, 4]]), max_new_tokens=3, do_sample=False, eos_token_id=None).shape == (1, 5)


def test_an_unknown_scaling_of_logits_is_refused():
    config = Qwen3Config(**SIZE)
    config.logit_scale = 0.5
    with pytest.raises(DataError, match="scales its logits"):
        logit_transform(config)


def test_a_head_that_is_not_linear_is_refused():
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16, n_positions=16))
    model.lm_head = nn.Sequential(nn.Linear(8, 16))
    with pytest.raises(DataError, match="linear lm_head"):
        PolicyModel(model, ModelSpec("", dtype="fp32"))
