"""A transformer with a head of one number, or of a few: the critic, and the reward model.

Its layout on disk is that of transformers' sequence classification with a label each (`model.*`, `score.weight`),
which TRL and vLLM read too. Shapes as in `models.hidden`.
"""

from __future__ import annotations

import math
import re
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.errors import DataError
from openrlhf_ext.models.fresh import Writable, draw_normal
from openrlhf_ext.models.hidden import hidden_states, one_position, recompute_activations, scatter
from openrlhf_ext.models.load import check_model, load_weights, weight_names, weight_shape
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.ports import ScoreOutput, ValueOutput

HEAD = "score"


class ScalarModel(nn.Module):
    """One number for each chosen token. A reward model may know the mean and standard deviation of its scores."""

    def __init__(self, model: PreTrainedModel, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = model
        self.head = _ScalarHead.take_over(model)
        self.mean, self.std = (score_scale(model.config) or (0.0, 1.0)) if spec.normalize else (0.0, 1.0)
        recompute_activations(model, spec)

    def _numbers(self, tokens_BT: Tensor, lengths_B: Tensor, chosen_BT: Tensor) -> Tensor:
        """(N, K) float32, in row-major order, of a head of K numbers."""
        hidden_NH = hidden_states(self.model.base_model, self.spec, tokens_BT, lengths_B, chosen_BT)
        return (self.head(hidden_NH) - self.mean) / self.std


class ValueModel(ScalarModel):
    """The critic: the return expected before each action, read where the policy decides on it."""

    @classmethod
    def load(cls, spec: ModelSpec, seed: int, writable: Writable) -> ValueModel:
        """From a causal language model the head is new: drawn from N(0, 1 / (H + 1)^2), as OpenRLHF 0.11.2 does.

        Raises DataError for a folder that is not a safetensors model that can be used.
        """
        return cls(_with_drawn_head(spec, seed, writable), spec)

    def forward(
        self, tokens_BT: Tensor, lengths_B: Tensor, action_BA: Tensor, temperature: float = 1.0, entropy: bool = False
    ) -> ValueOutput:
        """Action a is token a + 1, so its state is the hidden state of token a. Zero off actions."""
        # As in PolicyModel: a micro-batch without actions still reaches every parameter, with zero.
        selected_BA = action_BA if bool(action_BA.any()) else one_position(action_BA)
        value_N = self._numbers(tokens_BT, lengths_B, F.pad(selected_BA, (0, 1))).squeeze(-1)
        return ValueOutput(scatter(value_N if selected_BA is action_BA else value_N * 0.0, selected_BA))


class RewardModel(ScalarModel):
    """Scores whole sequences, at their last token, by a head of one number or, to be trained, of several."""

    @classmethod
    def load(cls, spec: ModelSpec, seed: int, writable: Writable) -> RewardModel:
        """Raises DataError for what is no safetensors model that can be used, or has no head where it needs one."""
        return cls(_with_drawn_head(spec, seed, writable), spec)

    def forward(
        self, tokens_BT: Tensor, lengths_B: Tensor, action_BA: Tensor, temperature: float = 1.0, entropy: bool = False
    ) -> ScoreOutput:
        last_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) == lengths_B[:, None] - 1
        return ScoreOutput(self._numbers(tokens_BT, lengths_B, last_BT))


class _ScalarHead(nn.Linear):
    """The model's own head in float32: bfloat16 has three digits, too few to tell one state's value from the next's."""

    @classmethod
    def take_over(cls, model: PreTrainedModel) -> _ScalarHead:
        head = model.score
        assert type(head) is nn.Linear, "transformers gives every sequence classifier of a decoder this head"
        head.__class__ = cls
        return cast(_ScalarHead, head)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        return F.linear(hidden_NH.float(), self.weight.float())


def check_scalar_model(spec: ModelSpec) -> PreTrainedConfig:
    """The architecture of a critic or reward model, by all that its files tell without being loaded.

    Raises DataError for an architecture without such a head, a reward model that has none, a head of another size,
    or a model that is to be normalised and does not know by what.
    """
    config = check_model(spec.path)
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise DataError(
            f"{spec.path} is a {config.model_type} model, which transformers gives no head of one number: use another "
            "architecture for the critic or the reward model."
        )
    names = weight_names(spec.path)
    needs_head = spec.kind == "reward" and not spec.new_head
    head = f"{_head_name(config, spec)}.weight"
    if needs_head and names is not None and head not in names:
        raise _headless(spec, config)
    if head in (names or ()) and (there := weight_shape(spec.path, head)[0]) != spec.head_dim:
        raise DataError(
            f"The head of {spec.path} ({head}) gives {there} numbers where {spec.head_dim} is needed: "
            f"give a model whose head gives {spec.head_dim}."
        )
    if spec.normalize and score_scale(config) is None:
        raise DataError(
            f"The reward model {spec.path} does not know the mean and std of its scores (config.json): leave out "
            "--reward.normalize_enable."
        )
    return config


def _with_drawn_head(spec: ModelSpec, seed: int, writable: Writable) -> PreTrainedModel:
    model, head_is_new = load_scalar_model(spec)
    if head_is_new and spec.kind == "reward" and not spec.new_head:
        raise _headless(spec, model.config)
    if head_is_new:
        hidden = model.config.get_text_config().hidden_size
        draw_normal(model.get_parameter(f"{HEAD}.weight"), 1 / (hidden + 1), seed, writable)
    return model


def load_scalar_model(spec: ModelSpec) -> tuple[PreTrainedModel, bool]:
    """The model, and whether its head is new, for then its weights mean nothing yet."""
    config = check_scalar_model(spec)
    name = _head_name(config, spec)
    config.num_labels = spec.head_dim
    renamed = {} if name == HEAD else {rf"^{re.escape(name)}\.": f"{HEAD}."}
    model, lacking = load_weights(
        AutoModelForSequenceClassification, spec, config, optional=[f"{HEAD}.weight"], renamed=renamed
    )
    if hasattr(config, "value_head_prefix"):
        model.config.value_head_prefix = HEAD
    if model.config.get_text_config().pad_token_id is None:  # not before loading: an embedding would not learn it
        model.config.get_text_config().pad_token_id = load_tokenizer(spec.path).pad_token_id
    return model, bool(lacking)


def score_scale(config: PreTrainedConfig) -> tuple[float, float] | None:
    """The mean and standard deviation of its scores that a reward model's config tells (OpenRLHF's names for them).

    Raises DataError for numbers that cannot be those.
    """
    if not (hasattr(config, "mean") and hasattr(config, "std")):
        return None
    mean, std = config.mean, config.std
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in (mean, std)) or std <= 0:
        raise DataError(
            f"The reward model's config.json has mean {mean} and std {std}, by which no score can be normalised: "
            "correct them, or leave out --reward.normalize_enable."
        )
    return float(mean), float(std)


def _headless(spec: ModelSpec, config: PreTrainedConfig) -> DataError:
    return DataError(
        f"{spec.path} has no {_head_name(config, spec)}.weight, the head of a reward model: give a reward model, or "
        "name its head by --ds.value_head_prefix."
    )


def _head_name(config: PreTrainedConfig, spec: ModelSpec) -> str:
    """A checkpoint that names its own head is believed."""
    return str(getattr(config, "value_head_prefix", spec.value_head))
