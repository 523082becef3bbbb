"""What the serve-rm command takes and refuses."""

from __future__ import annotations

import re

import pytest

from openrlhf_ext.config import parse
from openrlhf_ext.errors import ConfigError

MODEL = ["--reward.model_name_or_path", "m"]


def test_a_command_line_of_openrlhf():
    text = "--port 5000 --ds.param_dtype bf16 --ds.attn_implementation flash_attention_2 --reward.normalize_enable "
    text += "--data.max_len 8192 --batch_size 16"
    config = parse("serve-rm", [*MODEL, *text.split()]).config
    assert (config.host, config.port, config.batch_size, config.data.max_len) == ("127.0.0.1", 5000, 16, 8192)
    assert config.reward.normalize_enable


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("", "--reward.model_name_or_path: it is required: the reward model"),
        (
            "--reward.model_name_or_path m --student.tags a b",
            "--student.tags: it has no effect without --student.model",
        ),
        (
            "--student.model_name_or_path s --reward.model_name_or_path m",
            "--reward.model_name_or_path: it is of a reward",
        ),
        ("--student.model_name_or_path s --student.tags a a", "two texts that differ"),
        ("--student.model_name_or_path s --student.solution_terms mean", "one for each of the 1 solution_terms"),
        ("--port 65536", "--port 65536: it must be a port, 1 to 65535, or 0"),
        ("--port x", "--port x: it takes int"),
        ("--batch_size 0", "--batch_size 0: it must be 1 or more"),
        ("--data.max_len 1", "--data.max_len 1: it must be 2 or more"),
        ("--limits.request_mb 0", "--limits.request_mb 0: it must be 1 or more"),
        ("--limits.waiting_mb 64", "--limits.waiting_mb 64: one request of --limits.request_mb would be more than it"),
        ("--use_ms", "--use_ms True: ModelScope is not supported"),
        ("--ds.experts_implementation eager", "mixture-of-experts training is not supported"),
        ("--ds.attn_implementation torch_varlen", "add --ds.packing_samples"),
        ("--ds.zero_stage 2", "--ds.zero_stage: there is no such flag"),
        ("--preset cpu-tiny", "--preset cpu-tiny: it is for"),
    ],
)
def test_what_cannot_be_served(flags, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse("serve-rm", [*(MODEL if flags else []), *flags.split()])
