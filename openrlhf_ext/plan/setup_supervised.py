"""The setups of sft, rm and dpo: one model on its ranks, and dpo's reference where that is a second model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from openrlhf_ext.plan.answers import prompts_of_answers
from openrlhf_ext.plan.placing import Cut, forward_options, frozen_options, training_options
from openrlhf_ext.plan.shapes import adapters_of, text_shape
from openrlhf_ext.plan.types import DataSize, Hardware, Kind, ModelRun, Pass, Phase, Setup

POOL = "model"
AWAKE: frozenset[Phase] = frozenset({"load", "train", "save", "evaluate"})
SECOND_MODEL = ("quantised", "offloaded", "model")
"""The reference strategies of dpo that load a model beside the one in training."""
UNIT = {"sft": 1, "rm": 2, "dpo": 2}
"""Sequences of a row of data."""


def supervised_setup(command: Literal["sft", "rm", "dpo"], config: Any, hardware: Hardware, data: DataSize) -> Setup:
    ranks = config.model.num_nodes * config.model.num_gpus_per_node
    kind: Kind = "reward" if command == "rm" else "causal_lm"
    model = ModelRun(
        role="model",
        shape=text_shape(config.model.model_name_or_path),
        kind=kind,
        ranks=ranks,
        pool=POOL,
        head_dim=config.model.head_dim if command == "rm" else 1,
        awake=AWAKE,
        **training_options(config.ds, config),
        **forward_options(config.ds, config.model, hardware),
    )
    # Training that goes on from a folder of adapters trains those.
    model = replace(model, lora=adapters_of(config.model.model_name_or_path) or model.lora)
    cut = _cut(command, config, data)
    train = _pass(command, config, cut, ranks, backward=True)
    asked = _pass(command, config, cut, ranks, backward=False)
    accumulates = cut.accumulates(config.train.batch_size * cut.unit, ranks)
    model = replace(model, passes=(train, asked), accumulates=accumulates, answers=prompts_of_answers(config))
    models = [model]
    if command == "dpo" and (strategy := reference_strategy(config)) in SECOND_MODEL:
        models.append(_second_model(config, strategy, model, asked))
    return Setup(command, config, hardware, data, tuple(models), pools={POOL: ranks})


def reference_strategy(config: Any) -> str:
    """Where dpo's reference comes from, `auto` resolved: the base under new adapters, a frozen copy of those that
    training goes on from, else log-probs computed once."""
    strategy: str = config.ref.strategy
    if strategy != "auto":
        return strategy
    if config.ref.offload:
        return "offloaded"
    if adapters_of(config.model.model_name_or_path) and not config.ref.model_name_or_path:
        return "adapter"
    return "base" if config.ds.lora.rank and not config.ref.model_name_or_path else "cached"


def _cut(command: str, config: Any, data: DataSize) -> Cut:
    """Micro-batches of rows; a pair of rm and dpo is two of them."""
    length = min(config.data.max_len, data.max_tokens)
    # A reward model is read at the last token. Elsewhere every token but the first may be one to learn.
    selected = 1 if command == "rm" else max(length - 1, 1)
    train, unit = config.train, UNIT[command]
    if train.dynamic_batch_enable:
        return Cut(length, selected, max_tokens=train.max_tokens_per_gpu, unit=unit)
    return Cut(length, selected, rows=train.micro_batch_size, unit=unit)


def _pass(command: str, config: Any, cut: Cut, ranks: int, *, backward: bool) -> Pass:
    # dpo's loss reads the reference's log-probs of the same positions.
    columns = 1 if command == "dpo" and backward else 0
    return cut.largest(config.train.batch_size * cut.unit, ranks, backward=backward, columns=columns)


def _second_model(config: Any, strategy: str, model: ModelRun, asked: Pass) -> ModelRun:
    name = config.ref.model_name_or_path
    return replace(
        model,
        role="reference",
        shape=text_shape(name) if name else model.shape,
        lora=None,
        load_in_4bit=strategy == "quantised",
        load_in_8bit=False,
        eight_bit=False,
        adam_offload=False,
        overlap_comm=False,
        grad_accum_dtype=None,
        passes=(asked,),
        **frozen_options(config.ds, offload=strategy == "offloaded"),
    )
