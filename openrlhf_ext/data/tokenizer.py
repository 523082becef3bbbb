"""The tokenizer of a model folder or hub name, with what training needs of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_ext.data.hub import HUB_NAME, check_on_hub
from openrlhf_ext.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD_CANDIDATES = ("<|endoftext|>", "<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<unk>", "[UNK]")


def load_tokenizer(path: str | Path, *, fast: bool = True, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has an EOS and a pad token (see `choose_pad_token`).

    `chat_template` replaces the tokenizer's own. No code from the folder is run. Raises DataError
    when `path` holds no tokenizer or the tokenizer has no EOS token.
    """
    from transformers import AutoTokenizer

    if not Path(path).is_dir():
        if str(path).startswith(("/", ".", "~")) or not HUB_NAME.fullmatch(str(path)):
            raise DataError(f"{path} is not a folder: give a model folder with a tokenizer, or a hub name.")
        check_on_hub(str(path), "model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=fast, trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers and the hub raise many kinds for a folder that is none
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(
            f"no tokenizer can be loaded from {path} ({reason}): give a model folder that holds "
            "tokenizer.json and tokenizer_config.json, or a hub name within reach."
        ) from None
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer of {path} has no EOS token, so no answer could ever end: "
            "set eos_token in its tokenizer_config.json."
        )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    choose_pad_token(tokenizer)
    tokenizer.padding_side = "right"
    return tokenizer


def choose_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give `tokenizer` a pad token if it has none: the first of PAD_CANDIDATES that is in its vocabulary
    and is not EOS, else EOS itself.

    The vocabulary never grows (the engine's would not match). Which token pads is of no consequence to
    a loss: batches carry lengths and action masks, and no mask is ever derived from token ids, so an EOS
    that pads is not mistaken for the EOS that ends an answer.
    """
    if tokenizer.pad_token_id is not None:
        return
    vocabulary = tokenizer.get_vocab()
    free = (token for token in PAD_CANDIDATES if token in vocabulary and token != tokenizer.eos_token)
    tokenizer.pad_token = next(free, tokenizer.eos_token)


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DataError unless the tokenizer has a chat template that renders a user message."""
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template, which --data.apply_chat_template needs: "
            "leave that flag out and use --data.input_template, or give a tokenizer with a template."
        )
    render_chat(tokenizer, [{"role": "user", "content": "Hello"}], "a test message", generation_prompt=True)


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], where: str, *, generation_prompt: bool
) -> str:
    """The messages as one text by the tokenizer's chat template; DataError names `where` if it refuses them."""
    import jinja2

    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation_prompt)
    except (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"the chat template of {tokenizer.name_or_path} does not take the messages of {where} "
            f"({type(error).__name__}: {error}): check their roles and order, or use another template."
        ) from None
    assert isinstance(text, str)
    return text


def as_messages(value: Any, where: str, column: str, role: str = "user") -> list[dict[str, Any]]:
    """A string as one message of `role`, a list of messages as it is; DataError for anything else."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if (
        value
        and isinstance(value, Sequence)
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
    ):
        # parquet and arrow give every message all fields: those that are null were not there
        return [{name: field for name, field in m.items() if field is not None or name == "content"} for m in value]
    raise DataError(
        f"{where}: column {column!r} is neither a text nor a list of messages with 'role' and 'content' "
        f"(it is {type(value).__name__}: {str(value)[:60]!r})."
    )
