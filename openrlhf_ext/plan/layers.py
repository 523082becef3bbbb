"""A transformer of our families as transformers 5.15 computes it, in bytes (modeling_llama, _qwen3, _gemma2, _gemma3).

The functions follow transformers' own code line by line, so that the two can be laid side by side: a local variable
that holds a tensor there holds one here, for as long.
"""

from __future__ import annotations

from openrlhf_ext.plan.operations import Operations
from openrlhf_ext.plan.parameters import adapter_parameters, parameters, trainable_weights
from openrlhf_ext.plan.tape import Parameter, Value
from openrlhf_ext.plan.types import BYTES, ModelRun, Pass

FLOAT = 4


class Transformer:
    """A model without its head, on one micro-batch."""

    def __init__(self, run: ModelRun, one: Pass, ops: Operations) -> None:
        self.run, self.one, self.ops, self.shape = run, one, ops, run.shape
        self.width = BYTES[run.dtype]
        self.norm_in_float = run.shape.model_type.startswith("gemma")
        trained = {weight.name for weight in trainable_weights(run)} if one.backward else set()
        adapters = () if run.lora is None else adapter_parameters(run.shape, run.lora, run.kind)
        self.parameters = {
            weight.name: Parameter(weight.numel, self.width, weight.name in trained)
            for weight in (*parameters(run.shape, run.kind, run.head_dim), *adapters)
        }
        self.sequences = 1 if self.packed else one.rows
        self.longest = one.tokens // self.sequences

    @property
    def packed(self) -> bool:
        return self.run.packing and self.one.rows > 1

    def weight(self, module: str) -> Parameter:
        return self.parameters[f"{module}.weight"]

    def hidden_states(self) -> Value:
        """(tokens, hidden): the last hidden states."""
        ops, shape = self.ops, self.shape
        ops.ledger.at("embedding")
        hidden = embeds = self._embeds()
        masks = {window: self._mask(window) for window in dict.fromkeys(shape.windows or (None,))}
        # Cosines and sines, for each kind of layer where their base differs (Gemma 3).
        tables = {kind: ops.new(2 * self.longest * shape.head_dim, self.width) for kind in self._rotary_kinds()}
        for layer in range(shape.layers):
            window = shape.windows[layer] if shape.windows else None
            table = tables[window is not None and len(tables) > 1]

            def program(
                x: Value, layer: int = layer, table: Value = table, mask: Value | None = masks[window]
            ) -> Value:
                ops.ledger.at(f"layer {layer}")
                return self._layer(x, f"model.layers.{layer}", table, mask)

            if self.run.gradient_checkpointing and self.one.backward:
                hidden = ops.checkpoint(program, hidden, reentrant=self.run.reentrant)
            else:
                hidden = program(hidden)
        ops.ledger.at("head")
        last = self._norm(hidden, "model.norm", self.one.tokens)
        del embeds, tables
        return last

    def _rotary_kinds(self) -> set[bool]:
        if not self.shape.model_type.startswith("gemma3"):
            return {False}
        return {False, *(window is not None for window in self.shape.windows)}

    def _embeds(self) -> Value:
        ops = self.ops
        embeds = ops.embedding(self.weight("model.embed_tokens"), self.one.tokens * self.shape.hidden)
        if self.norm_in_float:  # Gemma scales its embeddings
            embeds = ops.times(embeds)
        if self.run.gradient_checkpointing and self.run.reentrant and self.one.backward:
            embeds.need = True
        return embeds

    def _mask(self, window: int | None) -> Value | None:
        """(sequences, length, length) booleans where rows or a window must be told apart and no kernel does it."""
        if self.run.attention not in ("sdpa", "eager"):
            return None
        if self.packed or (window is not None and window < self.longest) or self.run.attention == "eager":
            with self.ops.ledger.kept_as("attention"):
                width = self.width if self.run.attention == "eager" else 1
                return self.ops.new(self.sequences * self.longest**2, width)
        return None

    def _norm(self, x: Value, module: str, rows: int) -> Value:
        """Root mean square norm (arXiv:1910.07467), in float32."""
        ops, weight = self.ops, self.weight(module)
        if self.norm_in_float:
            output = self._normed(ops.cast(x, FLOAT), rows)
            output = ops.scale_by_weight(output, weight, width=FLOAT)
            return ops.cast(output, x.width)
        hidden_states = ops.cast(x, FLOAT)
        variance = ops.inverse_root_mean_square(hidden_states, rows)
        hidden_states = ops.mul(hidden_states, variance)
        return ops.scale_by_weight(ops.cast(hidden_states, x.width), weight, width=x.width)

    def _normed(self, x: Value, rows: int) -> Value:
        return self.ops.mul(x, self.ops.inverse_root_mean_square(x, rows))

    def _layer(self, x: Value, name: str, table: Value, mask: Value | None) -> Value:
        ops, tokens, four = self.ops, self.one.tokens, self.shape.norms_per_layer == 4
        residual = x
        hidden_states = self._norm(x, f"{name}.input_layernorm", tokens)
        hidden_states = self._attention(hidden_states, f"{name}.self_attn", table, mask)
        if four:
            hidden_states = self._norm(hidden_states, f"{name}.post_attention_layernorm", tokens)
        hidden_states = ops.add(residual, hidden_states)
        residual = hidden_states
        second = "pre_feedforward_layernorm" if four else "post_attention_layernorm"
        hidden_states = self._norm(hidden_states, f"{name}.{second}", tokens)
        hidden_states = self._mlp(hidden_states, f"{name}.mlp")
        if four:
            hidden_states = self._norm(hidden_states, f"{name}.post_feedforward_layernorm", tokens)
        return ops.add(residual, hidden_states)

    def _mlp(self, x: Value, name: str) -> Value:
        shape = self.shape
        acted = self._acted(x, name)
        if not shape.gated:
            return self._linear(acted, f"{name}.down_proj", shape.hidden)
        both = self.ops.mul(acted, self._linear(x, f"{name}.up_proj", shape.ffn))
        del acted
        return self._linear(both, f"{name}.down_proj", shape.hidden)

    def _acted(self, x: Value, name: str) -> Value:
        first = f"{name}.gate_proj" if self.shape.gated else f"{name}.up_proj"
        return self.ops.activation(self._linear(x, first, self.shape.ffn))

    def _linear(self, x: Value, module: str, outputs: int) -> Value:
        """A linear module, with its adapter where it has one (peft.tuners.lora)."""
        ops, lora = self.ops, self.run.lora
        result = self._base(x, module, outputs)
        adapter = self.parameters.get(f"{module}.lora_A.default.weight")
        if adapter is None or lora is None:
            return result
        if self.run.load_in_4bit:
            result = ops.copied(result)
        return ops.add(result, self._adapted(x, module, outputs, lora.rank, lora.dropout))

    def _adapted(self, x: Value, module: str, outputs: int, rank: int, dropout: float) -> Value:
        ops = self.ops
        half = self._plain_linear(
            ops.dropped(x, 1 if self.run.gpu else self.width) if dropout else x,
            self.weight(f"{module}.lora_A.default"),
            rank,
        )
        return ops.times(self._plain_linear(half, self.weight(f"{module}.lora_B.default"), outputs))

    def _base(self, x: Value, module: str, outputs: int) -> Value:
        if self.run.bits:
            forward = self.run.gpu or self.run.bits == 8
            return self.ops.dequantised_linear(x, self.weight(module), outputs, forward=forward)
        return self._plain_linear(x, self.weight(module), outputs)

    def _plain_linear(self, x: Value, weight: Parameter, outputs: int) -> Value:
        # Whatever is trained, DeepSpeed's own linear function at stage 3 saves its input (runtime/zero/linear.py).
        return self.ops.linear(x, weight, outputs, keeps_input=self.run.zero_stage == 3)

    def _attention(self, x: Value, name: str, table: Value, mask: Value | None) -> Value:
        ops, shape = self.ops, self.shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        query_states = self._projected(x, f"{name}.q", queries, shape.heads)
        key_states = self._projected(x, f"{name}.k", keys, shape.kv_heads)
        value_states = self._linear(x, f"{name}.v_proj", keys)
        query_states, key_states = ops.rotated(query_states, table), ops.rotated(key_states, table)
        with ops.ledger.kept_as("attention"):
            output = self._attended(query_states, key_states, value_states, mask)
        return self._linear(output, f"{name}.o_proj", shape.hidden)

    def _projected(self, x: Value, name: str, size: int, heads: int) -> Value:
        """Queries or keys, head by head, normed where the family does that."""
        states = self.ops.relaid(self._linear(x, f"{name}_proj", size))
        if self.shape.qk_norm:
            return self._norm(states, f"{name}_norm", self.one.tokens * heads)
        return states

    def _attended(self, q: Value, k: Value, v: Value, mask: Value | None) -> Value:
        ops, rows = self.ops, self.one.tokens * self.shape.heads
        if self.run.attention == "eager":
            return self._eager(q, self._repeated(k), self._repeated(v), mask)
        if mask is None:
            return ops.attended(q, k, v, None, rows)
        k, v = self._repeated(k), self._repeated(v)  # with a mask the kernels take no groups of heads
        # The kernels add their mask to the scores: each layer turns the booleans into numbers.
        return ops.attended(q, k, v, ops.new(mask.numel, self.width), rows)

    def _repeated(self, states: Value) -> Value:
        groups = self.shape.heads // self.shape.kv_heads
        # One head of one sequence can be seen as many without a copy; plain products need their batch in one piece.
        copied = self.shape.kv_heads > 1 or (self.run.attention == "eager" and self.sequences > 1)
        return states if groups == 1 else self.ops.repeated(states, groups, copied=copied)

    def _eager(self, q: Value, key_states: Value, value_states: Value, mask: Value | None) -> Value:
        """Scores for every pair of positions (`eager_attention_forward`)."""
        ops = self.ops
        pairs = self.one.tokens * self.longest * self.shape.heads
        attn_weights = ops.times(ops.matmul(ops.copied(q), key_states, pairs))
        if self.shape.attention_softcap is not None:
            attn_weights = ops.times(attn_weights)
            attn_weights = ops.tanh(attn_weights)
            attn_weights = ops.times(attn_weights)
        if mask is not None:
            attn_weights = ops.times(attn_weights)  # the sum with the mask: a new tensor, whose gradient is its own
        attn_weights = ops.cast(ops.softmax(attn_weights), q.width)
        attn_output = ops.matmul(attn_weights, value_states, q.numel)
        return ops.copied(attn_output)
