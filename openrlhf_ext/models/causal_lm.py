"""A causal language model that answers with log-probabilities of the tokens that were sampled.

Shapes: B rows, T tokens, A = T - 1 action positions (position a predicts token a + 1), S tokens of
all rows behind each other, N selected positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from openrlhf_ext.errors import DataError
from openrlhf_ext.models.hidden import hidden_states, one_position, recompute_activations, scatter
from openrlhf_ext.models.load import load_causal_lm
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.ops.logprobs import chunked_logprobs
from openrlhf_ext.ports import ModelOutput


class PolicyModel(nn.Module):
    """A Hugging Face causal LM whose output is `ModelOutput`: the logits of a batch never exist at once."""

    def __init__(self, model: PreTrainedModel, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.model = model
        self.head = _LogprobHead.take_over(model, spec.logprob_chunk)
        recompute_activations(model, spec)

    @classmethod
    def load(cls, spec: ModelSpec) -> PolicyModel:
        """Raises DataError for a folder that is not a safetensors model that can be used."""
        return cls(load_causal_lm(spec), spec)

    def forward(
        self, tokens_BT: Tensor, lengths_B: Tensor, action_BA: Tensor, temperature: float = 1.0, entropy: bool = False
    ) -> ModelOutput:
        """Log-probs (and entropies, in nats) of the actions under logits / temperature, zero elsewhere."""
        # A micro-batch without actions still sends one position through the head, weighted by zero: every
        # parameter takes part in every backward, or sharded ranks would wait for each other's gradients.
        selected_BA = action_BA if bool(action_BA.any()) else one_position(action_BA)
        hidden_NH = hidden_states(self.model.base_model, self.spec, tokens_BT, lengths_B, F.pad(selected_BA, (0, 1)))
        logp_N, entropy_N = self.head(hidden_NH, tokens_BT[:, 1:][selected_BA], temperature, entropy)
        if selected_BA is not action_BA:
            logp_N, entropy_N = logp_N * 0.0, None if entropy_N is None else entropy_N * 0.0
        return ModelOutput(scatter(logp_N, selected_BA), None if entropy_N is None else scatter(entropy_N, selected_BA))


class _LogprobHead(nn.Linear):
    """The model's own output projection, which can also answer with log-probs of targets.

    All chunks pass through one call of this module: ZeRO-3 gathers its weight once a call, and ranks
    with different numbers of chunks would otherwise gather different numbers of times.
    """

    chunk: int
    finish: Callable[[Tensor], Tensor]

    @classmethod
    def take_over(cls, model: PreTrainedModel, chunk: int) -> _LogprobHead:
        head = model.get_output_embeddings()
        if type(head) is not nn.Linear:
            raise DataError(
                f"{type(model).__name__} has an output head of type {type(head).__name__}, which log-probs cannot "
                "be computed from in chunks: use a model with a linear lm_head."
            )
        head.__class__ = cls
        taken = cast(_LogprobHead, head)
        taken.chunk, taken.finish = chunk, logit_transform(model.config)
        return taken

    def forward(  # type: ignore[override]
        self, hidden_NH: Tensor, targets_N: Tensor | None = None, temperature: float = 1.0, entropy: bool = False
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        if targets_N is None:
            return super().forward(hidden_NH)
        return chunked_logprobs(
            hidden_NH, self._logits, targets_N, chunk=self.chunk, temperature=temperature, entropy=entropy
        )

    def _logits(self, hidden_NH: Tensor) -> Tensor:
        return self.finish(F.linear(hidden_NH, self.weight, self.bias))


def logit_transform(config: PreTrainedConfig) -> Callable[[Tensor], Tensor]:
    """What an architecture does to its logits after the projection. Raises DataError for one we do not know."""
    text = config.get_text_config()
    cap = getattr(text, "final_logit_softcapping", None)
    if cap:  # Gemma 2 (arXiv:2408.00118, section 2)
        return lambda logits_NV: torch.tanh(logits_NV / cap) * cap
    scale = getattr(text, "logit_scale", None)
    scaling = getattr(text, "logits_scaling", None)
    if scale is not None and text.model_type.startswith("cohere"):
        return lambda logits_NV: logits_NV * scale
    if scaling is not None and text.model_type.startswith("granite"):
        return lambda logits_NV: logits_NV / scaling
    if scale is not None or scaling is not None:
        raise DataError(
            f"A {text.model_type} model scales its logits in a way that is not known here: use another architecture."
        )
    return lambda logits_NV: logits_NV
