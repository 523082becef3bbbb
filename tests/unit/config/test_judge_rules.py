"""What of a judge's flags cannot be honoured is said before anything loads."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from openrlhf_ext.config import RLConfig, parse
from openrlhf_ext.config.judge import longest_judgement, questions_of_a_prompt
from openrlhf_ext.errors import ConfigError

BASE = "--actor.model_name_or_path m --data.prompt_dataset d --data.max_len 64 --algo.advantage.estimator reinforce"
JUDGE = "--judge.model_name_or_path j --judge.prompt rubric.yaml"
ELSEWHERE = "--judge.url http://host/v1 --judge.served_model_name j --judge.prompt rubric.yaml"
RULE = "--reward.remote_url r.py"


@pytest.fixture(autouse=True)
def rubric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rubric.yaml").touch()


def config(line: str) -> RLConfig:
    return parse("rl", shlex.split(f"{BASE} {line}")).config


def test_a_judge_alone_is_a_reward():
    assert config(JUDGE).has_judge_reward and config(ELSEWHERE).has_judge_reward
    assert config(f"{JUDGE} {RULE} --reward.weights 1 0.5").reward.weights == (1.0, 0.5)
    with pytest.raises(ConfigError, match=r"--reward\.weights.*1 values for 2 sources"):
        config(f"{JUDGE} {RULE} --reward.weights 1")


def test_a_judge_without_a_rubric_answers_reward_files():
    served = config(f"--judge.model_name_or_path j {RULE} --judge.temperature 0.5")
    assert served.has_judge and not served.has_judge_reward
    assert config(f"--judge.model_name_or_path j {RULE} --reward.weights 2").reward.weights == (2.0,)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--judge.model_name_or_path j", "--judge.prompt: nobody asks the judge"),
        (f"{JUDGE}x", "--judge.prompt rubric.yamlx: there is no such file"),
        (f"{JUDGE} {ELSEWHERE}", "--judge.model_name_or_path names another judge"),
        ("--judge.url http://host/v1 --judge.prompt rubric.yaml", "--judge.served_model_name: it is required"),
        (f"{JUDGE} --judge.n_samples 3", "--judge.n_samples 3: at temperature 0"),
        (f"{JUDGE} --judge.mode pairwise", "--judge.mode pairwise: it compares answers to one prompt"),
        (
            f"{JUDGE} --judge.mode pairwise --rollout.n_samples_per_prompt 2 --eval.dataset d",
            "--eval.remote_url: a pairwise judge holds the answers against each other",
        ),
        (f"{JUDGE} --judge.max_pairs 3", "--judge.max_pairs 3: it has no effect without --judge.mode pairwise"),
        (f"{JUDGE} --judge.max_len 200", "raise it above --judge.max_new_tokens 256"),
        (f"{JUDGE} --judge.enable_sleep", "add --train.colocate_all"),
        (
            f"{JUDGE} --judge.enable_sleep --train.colocate_all --train.async_enable",
            "leave it out with --train.async_enable",
        ),
        (f"{JUDGE} --train.colocate_all --judge.tensor_parallel_size 2", "leave it out with --train.colocate_all"),
        (f"{JUDGE} --judge.timeout_s 9", "--judge.timeout_s 9.0: it has no effect without --judge.url"),
        (f"{ELSEWHERE} --judge.num_engines 2", "it has no effect without --judge.model_name_or_path"),
        (f"{RULE} --judge.prompt rubric.yaml", "it has no effect without --judge.model_name_or_path or --judge.url"),
        (
            f"--judge.model_name_or_path j {RULE} --judge.mode pairwise --rollout.n_samples_per_prompt 2",
            "--judge.mode pairwise: it has no effect without a judge with --judge.prompt",
        ),
        (f"{JUDGE} --judge.temperature 3", "--judge.temperature 3.0: it must be from 0 to 2"),
    ],
)
def test_what_cannot_be_honoured_is_said(line: str, said: str):
    with pytest.raises(ConfigError) as raised:
        config(line)
    assert said in str(raised.value)


def test_a_key_is_a_secret(tmp_path: Path):
    from openrlhf_ext.config.fields import flags_of

    assert flags_of(RLConfig)["judge.api_key"].secret


def test_a_judgement_has_room_for_what_may_be_shown():
    assert longest_judgement(config(JUDGE), None) == 64 + 2048 + 256
    pairs = config(f"{JUDGE} --judge.mode pairwise --rollout.n_samples_per_prompt 4")
    assert longest_judgement(pairs, None) == 2 * 64 + 2048 + 256
    assert longest_judgement(pairs, 1024) == 1024
    assert longest_judgement(config(f"{JUDGE} --judge.max_len 700"), 1024) == 700


@pytest.mark.parametrize(
    ("line", "questions"),
    [
        ("", 4),
        ("--judge.n_samples 3 --judge.temperature 1", 12),
        ("--judge.mode pairwise", 12),
        ("--judge.mode pairwise --judge.max_pairs 2", 4),
        ("--judge.mode pairwise --judge.max_pairs 99 --judge.n_samples 2 --judge.temperature 1", 24),
    ],
)
def test_questions_are_counted(line: str, questions: int):
    assert questions_of_a_prompt(config(f"{JUDGE} --rollout.n_samples_per_prompt 4 {line}")) == questions
