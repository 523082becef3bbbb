"""The tokenizer of a model folder or hub name, with what training needs of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
