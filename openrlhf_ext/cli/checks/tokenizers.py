"""Tokenizers: the ends of a text, the chat template, and whether models that read the same tokens agree on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf_ext.cli.checks.finding import Finding, error, of_error, ok, warning
from openrlhf_ext.cli.checks.subject import NotThereError, Subject, is_missing
from openrlhf_ext.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AREA = "tokenizer"


def find_tokenizer(subject: Subject) -> Iterator[Finding]:
    from openrlhf_ext.cli.specs import model_path
    from openrlhf_ext.data.chat import check_chat_template
    from openrlhf_ext.data.tokenizer import load_tokenizer

    config, path = subject.config, subject.model
    if path is None or is_missing(path):
        raise NotThereError("a model")
    if path in subject.broken_models:  # a hub name, which was asked for already
        raise NotThereError("a model that can be had")
    if subject.command != "rl":
        from openrlhf_ext.cli.supervised_model import base_path

        path = base_path(path)  # of a folder of adapters, its base
    template = getattr(config.data, "tokenizer_chat_template", None)
    try:
        tokenizer = load_tokenizer(path, fast=not config.data.disable_fast_tokenizer, chat_template=template)
    except UserError:
        if model_path(path) in subject.broken_models:
            raise NotThereError("a model that can be read") from None  # it may be for the same reason
        raise
    subject.tokenizer = tokenizer
    yield ok(
        AREA,
        f"{len(tokenizer)} tokens; EOS {tokenizer.eos_token}, pad {tokenizer.pad_token}, "
        f"{'a' if tokenizer.chat_template else 'no'} chat template",
    )
    yield from _embedding(path, tokenizer)
    if config.data.apply_chat_template:
        try:
            check_chat_template(tokenizer)
        except UserError as raised:
            yield of_error(AREA, raised)
    yield from _other_readers(subject, tokenizer)


def _embedding(path: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    from openrlhf_ext.models.load import load_config

    if not (Path(path) / "config.json").is_file():
        return
    try:
        rows = load_config(path).get_text_config().vocab_size
    except UserError:
        return  # the model's own check says it
    if len(tokenizer) > rows:
        yield error(
            AREA,
            f"the tokenizer of {path} has {len(tokenizer)} tokens and the model's embedding {rows} rows "
            "(vocab_size in its config.json), so a token may have no row",
            "give the tokenizer that the model was trained with, or a model whose embedding was enlarged for it.",
        )


def _other_readers(subject: Subject, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """Models that are given the token ids of this tokenizer."""
    from openrlhf_ext.data.tokenizer import load_tokenizer
    from openrlhf_ext.rewards.model import same_tokens

    for role, path, may_differ in _others(subject):
        if path == subject.model or is_missing(path):
            continue
        try:
            own = load_tokenizer(path, fast=not subject.config.data.disable_fast_tokenizer)
            if may_differ:
                _as_the_run_will(subject, tokenizer)
        except UserError as raised:
            yield of_error(AREA, raised)
            continue
        if same_tokens(own, tokenizer):
            yield ok(AREA, f"the {role} {path} has the same tokens")
            continue
        text = f"the {role} {path} has another vocabulary ({len(own)} tokens) than {subject.model} ({len(tokenizer)})"
        if may_differ:
            yield warning(
                AREA,
                f"{text}: every answer is rendered and tokenized anew for it",
                "give a reward model with the policy's vocabulary, if that is not meant.",
            )
        else:
            yield error(
                AREA,
                f"{text} and would be given token ids that mean something else to it",
                f"give a {role} with the same vocabulary.",
            )


def _others(subject: Subject) -> Iterator[tuple[str, str, bool]]:
    """Role, model, and whether it may have tokens of its own."""
    config = subject.config
    if subject.command == "dpo" and config.ref.model_name_or_path is not None:
        yield "reference", config.ref.model_name_or_path, False
    if subject.command != "rl":
        return
    if config.has_reward_model:
        yield "reward model", config.reward.model_name_or_path, True
    if config.student.model_name_or_path is not None:
        yield "student", config.student.model_name_or_path, False
    if config.has_critic:
        from openrlhf_ext.cli.rl_roles import model_name

        yield "critic", model_name(config, "critic"), False


def _as_the_run_will(subject: Subject, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises what the run would of a reward model's tokenizer."""
    from openrlhf_ext.cli.rl_setup import reward_model

    reward_model(subject.config, tokenizer)
