"""`openrlhf-ext tiny-model`: a tiny random model and tokenizer in a folder, for trying a job without a hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from openrlhf_ext.errors import DataError, UserError


@dataclass(frozen=True, slots=True)
class TinyModelArguments:
    """Build a tiny Qwen3-architecture model with random weights, and its tokenizer."""

    output: Path
    """The folder to write to."""
    corpus: Path | None = None
    """A text file to learn the tokenizer's merges from (without one, every byte is a token)."""
    hidden: int = 128
    """Width of the model."""
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 384
    """Width of the MLP."""
    vocab: int = 320
    """At most so many tokens: 256 bytes, 3 special tokens, and merges (at least 259)."""
    phrases: bool = False
    """Tokens may join words: a sentence that the corpus repeats is one token."""
    seed: int = 0
    """Of the random weights."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = tyro.cli(TinyModelArguments, args=argv, prog="openrlhf-ext tiny-model")
    try:
        folder = build(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(folder)
    return 0


def build(arguments: TinyModelArguments) -> Path:
    """Raises DataError for a corpus that cannot be read or sizes that do not fit together."""
    a = arguments
    if a.heads % a.kv_heads:
        raise DataError(f"--heads {a.heads} must be a multiple of --kv-heads {a.kv_heads}, which they share.")
    if a.vocab < 259:
        raise DataError(f"--vocab {a.vocab} is too small: give at least 259 (256 bytes and 3 special tokens).")
    if a.corpus is not None and not a.corpus.is_file():
        raise DataError(f"--corpus {a.corpus} is not a file: name a text file, or leave the flag out.")

    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # transformers imports DeepSpeed, which else looks for a GPU
    from openrlhf_ext.models.tiny import TinyShape, build_tiny_model

    shape = TinyShape(a.hidden, a.layers, a.heads, a.kv_heads, a.intermediate, a.vocab, a.phrases)
    corpus = a.corpus.read_text(encoding="utf-8").splitlines() if a.corpus else ()
    return build_tiny_model(a.output, shape, corpus=corpus, seed=a.seed)


if __name__ == "__main__":
    sys.exit(main())
