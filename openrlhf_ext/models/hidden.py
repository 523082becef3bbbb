"""Last hidden states of chosen tokens, from rows that are padded or packed, and numbers back in their places.

Shapes: B rows, T tokens, A = T - 1 action positions, S tokens of all rows behind each other, N chosen tokens, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.models.varlen import TORCH_VARLEN, row_bounds


def hidden_states(
    backbone: nn.Module, spec: ModelSpec, tokens_BT: Tensor, lengths_B: Tensor, chosen_BT: Tensor
) -> Tensor:
    """(N, H) last hidden states of the chosen tokens, in row-major order, from a transformer without its head.

    Rows are padded on the right: causal attention never sees the padding, so no mask is needed.
    """
    varlen = spec.attn_implementation == TORCH_VARLEN
    if not spec.packing or (tokens_BT.shape[0] == 1 and not varlen):
        return backbone(input_ids=tokens_BT, use_cache=False).last_hidden_state[chosen_BT]
    position_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    real_BT = position_T < lengths_B[:, None]
    # Positions that start again at 0 are how transformers knows where a packed row begins.
    position_1S = position_T.expand_as(tokens_BT)[real_BT][None]
    bounds = row_bounds(lengths_B) if varlen else {}
    hidden_SH = backbone(
        input_ids=tokens_BT[real_BT][None], position_ids=position_1S, use_cache=False, **bounds
    ).last_hidden_state[0]
    return hidden_SH[chosen_BT[real_BT]]


def one_position(action_BA: Tensor) -> Tensor:
    """An action mask with one action: what stands in for a micro-batch that has none."""
    selected_BA = torch.zeros_like(action_BA)
    selected_BA[0, 0] = True
    return selected_BA


def scatter(values_N: Tensor, selected_BA: Tensor) -> Tensor:
    """(B, A) float32 with the values where selected, in row-major order, and zero elsewhere."""
    return torch.zeros(selected_BA.shape, dtype=torch.float32, device=values_N.device).masked_scatter(
        selected_BA, values_N.float()
    )


def recompute_activations(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174), where the spec asks for it."""
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": spec.reentrant})
        if spec.reentrant:  # its blocks propagate no gradient unless their input asks for one
            model.enable_input_require_grads()
