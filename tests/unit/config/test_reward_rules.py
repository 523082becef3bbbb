"""What is said of the flags of reward sources before anything runs, and how they reach the sources."""

from __future__ import annotations

import pytest

from openrlhf_ext.cli.rl_rewards import reward_settings, reward_sources
from openrlhf_ext.config import parse
from openrlhf_ext.config.rules import rewards as rules
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.rewards import builtin
from openrlhf_ext.rewards.sources import HttpSettings, RuleSettings

RL = "--actor.model_name_or_path m --data.prompt_dataset d --actor.num_gpus_per_node 1 "

FORBIDDEN = [
    ("--reward.remote_url r.py --reward.normalize batch none", "2 values for 1 sources"),
    ("--reward.remote_url r.py --reward.normalize mean", "give none, batch or group"),
    ("--reward.remote_url r.py --reward.normalize group", "a group of one has no spread"),
    ("--reward.remote_url rule:fromat", "there is no such rule; choose from rule:format"),
    ("--reward.remote_url rule:format", "give either --reward.format_pattern or --reward.format_tags"),
    ("--reward.remote_url rule:format --reward.format_pattern a --reward.format_tags b", "give either"),
    ("--reward.remote_url rule:format --reward.format_pattern (", "it is no regular expression"),
    ("--reward.remote_url rule:length", "give --reward.length_range LOW HIGH"),
    ("--reward.remote_url rule:length --reward.length_range 9 3", "the lower one first"),
    ("--reward.remote_url verify:math", "--data.label_key: verify:math compares answers to labels"),
    ("--reward.remote_url verify:exact --data.label_key l --reward.answer_pattern [", "it is no regular expression"),
    ("--reward.remote_url r.py --reward.format_tags a", "no effect without rule:format in --reward.remote_url"),
    ("--reward.remote_url r.py --reward.length_range 1 2", "no effect without rule:length"),
    ("--reward.remote_url r.py --reward.answer_pattern x", "no effect without verify:exact or verify:math"),
    ("--reward.remote_url r.py --reward.verify_timeout_s 1", "no effect without rule:format, verify:exact"),
    ("--reward.remote_url r.py --reward.http_batch_size 4", "no effect without a URL"),
    ("--reward.remote_url http://a/b --reward.http_concurrency 0", "1 or more"),
]


@pytest.mark.parametrize(("line", "said"), FORBIDDEN)
def test_what_is_forbidden(line, said):
    with pytest.raises(ConfigError) as error:
        parse("rl", (RL + line).split())
    assert said in str(error.value)


def test_the_flags_reach_the_sources():
    line = (
        "--reward.remote_url rules.py,http://a/b|http://c/d,rule:format,rule:length,verify:math --data.label_key l "
        "--reward.normalize none batch group none none --rollout.n_samples_per_prompt 2 --reward.http_batch_size 3 "
        "--reward.http_concurrency 4 --reward.http_failures 6 --reward.http_cooldown_s 7 --reward.format_tags a b "
        "--reward.length_range 5 9 --reward.answer_pattern x(y) --reward.verify_timeout_s 2 --reward.max_retries 1"
    )
    config = parse("rl", (RL + line).split()).config
    assert reward_sources(config) == ["rules.py", "http://a/b|http://c/d", "rule:format", "rule:length", "verify:math"]
    settings = reward_settings(config)
    assert settings.normalize == ("none", "batch", "group", "none", "none")
    assert settings.http == HttpSettings(3, 4, 6, 7.0)
    assert settings.rules == RuleSettings(None, ("a", "b"), (5, 9), "x(y)", 2.0)
    assert settings.max_retries == 1


def test_the_rules_know_the_sources_that_there_are():
    assert set(rules.BUILTIN) == set(builtin.BUILTIN)
