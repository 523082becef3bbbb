"""Floating-point operations of a model, a multiplication and an addition being two (Kaplan et al. 2020,
arXiv:2001.08361, section 2.1), and of its attention, which looks at half of the sequence on average.
"""

from __future__ import annotations

from openrlhf_ext.plan.parameters import adapter_parameters
from openrlhf_ext.plan.types import ModelRun, ModelShape


def forward_flops(run: ModelRun, sequences: float, length: float, selected: float) -> float:
    """Of sequences of this length, so many tokens of each of which go through the head (one position of a reward
    model)."""
    tokens = sequences * length
    blocks = 2 * tokens * (block_parameters(run.shape) + _adapters(run)) + attention_flops(run.shape, sequences, length)
    return blocks + 2 * sequences * selected * _head(run)


def train_flops(run: ModelRun, sequences: float, length: float, selected: float) -> float:
    """Forward and backward: the gradient of every input and, without LoRA, of every weight costs a forward each.

    Checkpointing runs the blocks forward once more; chunks of the head always are (`models.causal_lm`).
    """
    tokens, again = sequences * length, int(run.gradient_checkpointing)
    frozen = run.lora is not None
    blocks = 2 * tokens * block_parameters(run.shape) * (2 + again + (not frozen))
    adapters = 2 * tokens * _adapters(run) * (3 + again)
    attention = attention_flops(run.shape, sequences, length) * (3 + again)
    head = 2 * sequences * selected * _head(run) * (3 + (not frozen) if run.kind == "causal_lm" else 3)
    return blocks + adapters + attention + head


def attention_flops(shape: ModelShape, sequences: float, length: float) -> float:
    """Queries times keys and weights times values, forward."""
    windows = shape.windows or (None,) * shape.layers
    seen = sum(length / 2 if window is None else min(length / 2, window) for window in windows)
    return 4 * sequences * length * shape.heads * shape.head_dim * seen


def block_parameters(shape: ModelShape) -> int:
    """Of the matrices that every token goes through, the head aside."""
    attention = 2 * shape.hidden * (shape.heads + shape.kv_heads) * shape.head_dim
    return shape.layers * (attention + (3 if shape.gated else 2) * shape.hidden * shape.ffn)


def _adapters(run: ModelRun) -> int:
    if run.lora is None:
        return 0
    return sum(weight.numel for weight in adapter_parameters(run.shape, run.lora, run.kind))


def _head(run: ModelRun) -> int:
    return run.shape.hidden * (run.shape.vocab if run.kind == "causal_lm" else run.head_dim)
