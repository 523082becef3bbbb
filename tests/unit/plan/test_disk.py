"""What a checkpoint takes, against files that DeepSpeed 0.19.6 wrote of 3,283,200 parameters (163,840 of adapters)."""

from __future__ import annotations

import json

import pytest

from openrlhf_ext.config import parse
from openrlhf_ext.plan.disk import checkpoint_bytes, kept_bytes
from openrlhf_ext.plan.setup import setup_of
from openrlhf_ext.plan.types import DataSize, Hardware

TINY = {
    "model_type": "qwen3",
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 384,
    "vocab_size": 259,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


def setup(folder, flags: str):
    (folder / "config.json").write_text(json.dumps(TINY))
    parsed = parse("sft", f"--model.model_name_or_path {folder} {flags}".split(), planning=True)
    return setup_of("sft", parsed.config, parsed.explicit, Hardware(None, 0), DataSize(100, None, 512))


@pytest.mark.parametrize(
    ("flags", "written"),
    [
        ("--ds.zero_stage 0 --ds.param_dtype fp32", 39_474_340),
        ("--ds.zero_stage 1", 46_038_981),
        ("--ds.zero_stage 2", 46_038_981),
        ("--ds.zero_stage 3", 39_479_109),
        ("--ds.zero_stage 2 --ds.param_dtype fp32", 52_605_311),
        ("--ds.zero_stage 3 --ds.param_dtype fp32", 39_479_039),
        ("--ds.zero_stage 2 --ds.lora.rank 8", 2_392_359),
        ("--ds.zero_stage 3 --ds.lora.rank 8", 2_071_947),
    ],
)
def test_a_checkpoint_is_as_large_as_what_was_written(tmp_path, flags, written):
    # Beside the state: code that puts the shards together again (35 kB), random states, names.
    assert 0 < written - checkpoint_bytes(setup(tmp_path, flags)) < 120_000


def test_as_many_are_kept_as_the_flags_say(tmp_path):
    one = checkpoint_bytes(setup(tmp_path, "--ds.zero_stage 3"))
    assert kept_bytes(setup(tmp_path, "--ds.zero_stage 3 --ckpt.max_num 4")) == 4 * one
    assert kept_bytes(setup(tmp_path, "--ds.zero_stage 3 --ckpt.max_num 4 --ckpt.max_mem 0.1")) == 2 * one
    assert kept_bytes(setup(tmp_path, "--ds.zero_stage 3 --ckpt.max_mem 0.001")) == one, "the newest is always kept"
    assert checkpoint_bytes(setup(tmp_path, "--ckpt.disable_ds")) == 0
