"""The module that an engine trains or asks, from its spec."""

from __future__ import annotations

from openrlhf_ext.models.causal_lm import PolicyModel
from openrlhf_ext.models.spec import ModelSpec


def build_model(spec: ModelSpec) -> PolicyModel:
    """A module with the Hugging Face model as its attribute `model`; it is called with
    (tokens_BT, lengths_B, action_BA, temperature, entropy) and answers with a tuple whose first tensor is its answer.

    Raises DataError for a model that cannot be loaded.
    """
    assert spec.kind == "causal_lm", "other kinds are built elsewhere"
    return PolicyModel.load(spec)
