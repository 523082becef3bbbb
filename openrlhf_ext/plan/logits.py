"""The heads of our models in bytes: log-probs in chunks (`ops.logprobs`) and values (`models.value_model`)."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_ext.plan.layers import FLOAT, Transformer
from openrlhf_ext.plan.tape import Block, Gradient, Value


def answer(model: Transformer, hidden: Value) -> Value:
    """From (N, hidden) states of the chosen positions to what the loss is made of (too small to count)."""
    if model.run.kind == "causal_lm":
        with model.ops.ledger.kept_as("logits"):
            return _logprobs(model, hidden)
    ops = model.ops
    return ops.linear(ops.cast(hidden, FLOAT), model.weight("score"), model.run.head_dim)


def _logprobs(model: Transformer, hidden: Value) -> Value:
    ops, run, size = model.ops, model.run, model.shape.hidden
    positions, chunk = hidden.numel // size, run.logprob_chunk
    sizes = [min(chunk, positions - start) * size for start in range(0, positions, chunk)]
    *earlier, last = ops.split(hidden, sizes)
    total = ops.new(0, FLOAT)
    for part in earlier:
        total = ops.add(total, ops.checkpoint(lambda x: _chunk(model, x), part, reentrant=False))
    return ops.add(total, _chunk(model, last))


def _chunk(model: Transformer, hidden: Value) -> Value:
    ops, vocab = model.ops, model.shape.vocab
    head = "model.embed_tokens" if model.shape.tied else "lm_head"
    logits = ops.linear(hidden, model.weight(head), vocab)
    if model.shape.logit_softcap is not None:
        logits = _capped(model, logits)
    logits = ops.cast(logits, FLOAT)
    if model.one.tempered:
        logits = ops.times(logits)
    return _logprob(model, logits)


def _capped(model: Transformer, logits: Value) -> Value:
    """tanh(logits / cap) * cap (arXiv:2408.00118)."""
    ops = model.ops
    return ops.times(ops.tanh(ops.times(logits)))


def _logprob(model: Transformer, logits: Value) -> Value:
    """`_LogprobEntropy`: keeps the logits; the entropy takes another tensor of their size, both ways."""
    ops, entropy, size = model.ops, model.one.entropy, logits.nbytes
    saved = ops.save(logits)
    if entropy:
        ops.block(size)
    out, node = ops.new(0, FLOAT), logits.node

    def backward(grad: Block) -> Sequence[Gradient]:
        nonlocal saved
        back = ops.block(size)
        weights = ops.block(size) if entropy else None
        saved = None
        del weights
        return [(node, back, size)]

    return ops.link(out, [logits], backward)
