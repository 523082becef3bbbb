from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from openrlhf_ext.errors import DataError
from openrlhf_ext.models.export import named_weights, plan_buckets, write_model_folder


@given(sizes=st.lists(st.integers(0, 50), max_size=30), limit=st.integers(1, 60))
def test_buckets_are_consecutive_complete_and_bounded(sizes, limit):
    buckets = plan_buckets(sizes, limit)
    assert [size for bucket in buckets for size in sizes[bucket]] == sizes
    for bucket, following in zip(buckets, [*buckets[1:], None], strict=True):
        assert sum(sizes[bucket]) <= limit or sum(size > 0 for size in sizes[bucket]) == 1
        if following:  # and none could have taken one more
            assert sum(sizes[bucket]) + sizes[following][0] > limit


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    config = Qwen3Config(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    model.generation_config.temperature, model.generation_config.do_sample = 0.6, True
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(16)}, unk_token="w0"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1")
    fast.chat_template = "{{ messages[0]['content'] }}"
    fast.save_pretrained(folder)
    return folder


def export(source, folder, bucket_bytes):
    model = AutoModelForCausalLM.from_pretrained(source)
    weights = list(named_weights(model))
    plan = plan_buckets([weight.nbytes for weight in weights], bucket_bytes)
    buckets = [[(weight.name, weight.full()) for weight in weights[bucket]] for bucket in plan]
    write_model_folder(model, str(source), folder, iter(buckets), len(buckets))
    return model, len(buckets)


@pytest.mark.parametrize("bucket_bytes", [1 << 20, 700])
def test_the_folder_is_the_model_with_its_tokenizer(source, tmp_path, bucket_bytes):
    model, shards = export(source, tmp_path / "out", bucket_bytes)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == shards
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.randint(0, 16, (2, 5))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.generation_config.temperature == 0.6
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token == "w1" and tokenizer.chat_template


def test_a_tied_weight_is_written_once_under_the_embedding(source):
    names = [weight.name for weight in named_weights(AutoModelForCausalLM.from_pretrained(source))]
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names


def test_an_older_folder_is_replaced_whole(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale.safetensors").write_text("old")
    export(source, tmp_path / "out", 1 << 20)
    assert not (tmp_path / "out" / "stale.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_failure_leaves_the_older_folder_as_it_was(source, tmp_path):
    export(source, tmp_path / "out", 1 << 20)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for file in source.glob("token*"):
        file.unlink()
    with pytest.raises(DataError, match="no tokenizer"):
        export(source, tmp_path / "out", 1 << 20)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
