"""A tiny Qwen3 model and its tokenizer, built from nothing.

The whole stack (transformers, DeepSpeed, vLLM) takes it like any other checkpoint, so the demo job
and the tests need neither a hub nor a download.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# Words with their leading space, single digits (arithmetic stays learnable), runs of anything else.
_PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"
# Digits two by two with their leading space, and whatever stands between them on a line: merges join words (SuperBPE,
# Liu et al. 2025), so that a sentence which the corpus repeats is one token, and long instructions cost little.
_PHRASES = r" ?\p{N}{1,2}|\n|(?: (?!\p{N})|[^\p{N}\n ])+"

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
{{- '\\n' }}
{%- else %}
{{- message['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


@dataclass(frozen=True, slots=True)
class TinyShape:
    """The size of the model; the defaults are about half a million parameters."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 384
    vocab: int = 320
    """At most so many tokens: 256 bytes, 3 special tokens, the rest merges learned from the corpus."""
    phrases: bool = False
    """Tokens may join words: a sentence that the corpus repeats is one token."""
    max_positions: int = 4096
    tie_embeddings: bool = True
    head_dim: int = 32
    """The smallest that vLLM's attention on a CPU takes."""

    def __post_init__(self) -> None:
        assert self.heads % self.kv_heads == 0, "query heads share key-value heads evenly"
        assert self.vocab >= 259, "256 bytes and 3 special tokens"


def build_tokenizer(
    corpus: Iterable[str] = (), vocab: int = 320, max_positions: int = 4096, *, phrases: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (any text can be encoded) with a ChatML template.

    `<|im_end|>` ends a turn and is EOS, `<|endoftext|>` pads. Without a corpus there are no merges.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PHRASES if phrases else _PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True) for token in (PAD, TURN_START, TURN_END)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=max_positions,
    )


def build_tiny_model(
    folder: str | Path, shape: TinyShape | None = None, *, corpus: Iterable[str] = (), seed: int = 0
) -> Path:
    """Write a randomly initialised Qwen3 causal language model (float32) and its tokenizer to `folder`.

    The same shape, corpus and seed give the same bytes. torch's global random state is left as it was.
    """
    shape = shape or TinyShape()
    folder = Path(folder)
    disable_progress_bar()  # of saving: there is one file
    tokenizer = build_tokenizer(corpus, shape.vocab, shape.max_positions, phrases=shape.phrases)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tie_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).float()
    model.generation_config = GenerationConfig(
        do_sample=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
