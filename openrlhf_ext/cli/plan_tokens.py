"""Tokens counted as the command itself counts them: with its tokenizer, template and rules. Imports transformers."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

from openrlhf_ext.cli.plan_data import longest_answer
from openrlhf_ext.data.preferences import load_preferences
from openrlhf_ext.data.prompts import load_prompts
from openrlhf_ext.data.sft import load_sft
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.types import DataSize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def counted(command: str, config: Any) -> DataSize:
    """Rows that are left after the command's own rules, and their tokens. Raises what its loaders raise."""
    data = config.data
    path = (config.actor if command == "rl" else config.model).model_name_or_path
    if path is None:
        raise ConfigError("--plan.tokenize: name the model whose tokenizer is to count.")
    template = None if command == "rl" else data.tokenizer_chat_template
    tokenizer = load_tokenizer(path, fast=not data.disable_fast_tokenizer, chat_template=template)
    if command == "rl":
        return _of_prompts(config, tokenizer)
    if command == "sft":
        from openrlhf_ext.cli.supervised_rows import sft_settings

        loaded = load_sft(sft_settings(config, data.dataset, data.dataset_split, data.dataset_probs), tokenizer)
        lengths, rows = [len(example.token_ids) for example in loaded.examples], len(loaded.examples)
    else:
        lengths = _of_pairs(command, config, tokenizer)
        rows = len(lengths) // 2
    return DataSize(rows, fmean(lengths), max(lengths), how="counted")


def _of_prompts(config: Any, tokenizer: PreTrainedTokenizerBase) -> DataSize:
    from openrlhf_ext.cli.rl_setup import prompt_settings

    data = config.data
    wanted = prompt_settings(config, data.prompt_dataset, data.prompt_split, data.prompt_probs, data.max_samples)
    lengths = [len(prompt.token_ids) for prompt in load_prompts(wanted, tokenizer).prompts]
    whole = [min(length + longest_answer(config), data.max_len) for length in lengths]
    return DataSize(len(lengths), fmean(whole), max(whole), fmean(lengths), how="counted")


def _of_pairs(command: str, config: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Of the chosen and the rejected answer of every pair, each with its prompt."""
    from openrlhf_ext.cli.supervised_rows import dpo_settings, rm_settings

    data = config.data
    settings_of = rm_settings if command == "rm" else dpo_settings
    settings = settings_of(config, data.dataset, data.dataset_split, data.dataset_probs)
    pairs = load_preferences(settings, tokenizer).pairs
    return [len(side.token_ids) for pair in pairs for side in (pair.chosen, pair.rejected)]
