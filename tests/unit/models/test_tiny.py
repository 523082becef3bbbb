from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf_ext.cli import tiny_model
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model, build_tokenizer

SHAPE = TinyShape(hidden=32, layers=2, heads=4, kv_heads=2, intermediate=64, vocab=300)
CORPUS = ["Sort the digits 4 8 1", "user assistant"] * 20
TOKENIZER = build_tokenizer(CORPUS, 300)


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200, deadline=None)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    assert TOKENIZER.decode(ids) == text


def test_digits_stay_single_and_words_merge() -> None:
    assert TOKENIZER.tokenize("4819") == ["4", "8", "1", "9"]
    assert TOKENIZER.tokenize("Sort the") == ["Sort", "Ġthe"]
    assert len(build_tokenizer().tokenize("Sort the")) == len("Sort the")


def test_the_template_marks_what_the_assistant_says() -> None:
    messages = [
        {"role": "user", "content": "Sort 4 8 1"},
        {"role": "assistant", "content": "1 4 8"},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "again"},
    ]
    encoded = TOKENIZER.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    said = [i for i, mine in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mine]
    assert TOKENIZER.decode(said) == "1 4 8<|im_end|>again<|im_end|>"


def test_a_prompt_is_the_beginning_of_the_whole_conversation() -> None:
    messages = [{"role": "user", "content": "Sort 4 8 1"}, {"role": "assistant", "content": "1 4 8"}]
    prompt = TOKENIZER.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert TOKENIZER.apply_chat_template(messages, tokenize=False) == prompt + "1 4 8<|im_end|>\n"


def test_transformers_loads_it_and_the_seed_decides_the_weights(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    folders = [build_tiny_model(tmp_path / str(i), SHAPE, corpus=CORPUS, seed=seed) for i, seed in enumerate([3, 3, 4])]
    assert torch.equal(torch.random.get_rng_state(), before)

    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    assert models[0].config.model_type == "qwen3"
    weights = [model.get_input_embeddings().weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert models[0].lm_head.weight is models[0].get_input_embeddings().weight

    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert tokenizer.eos_token_id == models[0].generation_config.eos_token_id
    assert len(tokenizer) == models[0].config.vocab_size


def test_the_command_builds_what_it_is_asked_for(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CORPUS), encoding="utf-8")
    flags = ["--hidden", "32", "--layers", "1", "--intermediate", "64", "--vocab", "300", "--corpus", str(corpus)]
    assert tiny_model.main(["--output", str(tmp_path / "model"), *flags]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 1)


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--heads", "3"], "--heads 3"), (["--vocab", "10"], "--vocab 10"), (["--corpus", "nowhere"], "nowhere")],
)
def test_sizes_that_do_not_fit_are_one_sentence(
    flags: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_model.main(["--output", str(tmp_path / "model"), *flags]) == 2
    message = capsys.readouterr().err.strip()
    assert named in message
    assert "\n" not in message
    assert not (tmp_path / "model").exists()
