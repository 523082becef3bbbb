"""What of eval's flags cannot be honoured is said before anything loads."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from openrlhf_ext.config import parse
from openrlhf_ext.config.evaluation import EvalConfig
from openrlhf_ext.errors import ConfigError

ROWS = "--data.dataset d --eval.output o"
BASE = f"--model.model_name_or_path m {ROWS}"
LABELLED = f"{BASE} --data.label_key a"
ENDPOINT = f"--model.url http://host/v1 --model.served_model_name s {ROWS} --data.label_key a"
JUDGE = "--judge.model_name_or_path j --judge.prompt rubric.yaml"


@pytest.fixture(autouse=True)
def rubric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rubric.yaml").touch()


def config(line: str) -> EvalConfig:
    return parse(EvalConfig, shlex.split(line)).config


@pytest.mark.parametrize(
    "line",
    [
        f"{LABELLED} --eval.scorer 'number_after:####'",
        f"{BASE} --eval.scorer reward.py",
        f"{BASE} --eval.scorer reward.py {JUDGE}",
        f"{BASE} --eval.scorer http://127.0.0.1:5000/get_reward --reward.http_concurrency 4",
        f"{BASE} --eval.scorer reward_model --reward.model_name_or_path r",
        f"{BASE} --eval.scorer judge {JUDGE} --eval.hallucination --eval.threshold 0.8",
        f"{BASE} --eval.scorer none",
        f"{BASE} --eval.against other {JUDGE}",
        f"{LABELLED} --eval.perplexity",
        f"{LABELLED} --eval.scorer exact --eval.n_samples_per_prompt 4 --eval.temperature 0.6 --eval.k 1 4",
        f"{ENDPOINT} --eval.scorer first_letter --model.concurrency 4",
        "--model.model_name_or_path m --eval.lm_eval arc_easy --eval.output o",
        "--model.model_name_or_path m --eval.lm_eval arc_easy --eval.output o --data.max_samples 9",
    ],
)
def test_what_is_taken(line: str) -> None:
    assert config(line).eval.output == "o"


def test_log_likelihoods_alone_generate_nothing() -> None:
    assert not config(f"{LABELLED} --eval.perplexity").generates
    assert config(f"{LABELLED} --eval.perplexity --eval.scorer none").generates


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{ROWS} --eval.scorer none", "--model.model_name_or_path: it is required"),
        (f"{BASE} --model.url u --model.served_model_name s --eval.scorer none", "names another model; leave out one"),
        (f"--model.url u {ROWS} --eval.scorer none", "--model.served_model_name: it is required"),
        (f"{BASE} --eval.scorer none --model.timeout_s 9", "--model.timeout_s: it has no effect without --model.url"),
        (f"{ENDPOINT} --eval.perplexity", "--eval.perplexity: it has no effect without --model.model_name_or_path"),
        (f"{ENDPOINT} --eval.scorer exact --eval.top_p 0.9", "--eval.top_p: it has no effect"),
        (f"{ENDPOINT} --eval.scorer exact --vllm.threads 2", "--vllm.threads: it has no effect"),
        ("--model.model_name_or_path m --data.dataset d --eval.scorer none", "--eval.output: it is required"),
        ("--model.model_name_or_path m --eval.output o --eval.scorer none", "--data.dataset: it is required"),
        (BASE, "--eval.scorer: it is required"),
        (f"{LABELLED} --eval.scorer contains", "--eval.scorer contains: there is no such rule"),
        (f"{BASE} --eval.scorer exact", "--data.label_key: exact needs reference answers"),
        (f"{BASE} --eval.perplexity", "--data.label_key: --eval.perplexity needs reference answers"),
        (f"{BASE} --eval.scorer verify:math", "--data.label_key: verify:math needs"),
        (f"{BASE} --eval.scorer rule:length", "give --reward.length_range"),
        (f"{BASE} --eval.scorer rule:format", "either --reward.format_pattern or"),
        (f"{BASE} --eval.scorer reward_model", "--reward.model_name_or_path: it is required"),
        (f"{LABELLED} --eval.scorer exact --reward.model_name_or_path r", "no effect without --eval.scorer reward"),
        (f"{LABELLED} --eval.scorer exact --reward.timeout_s 3", "it is of a file, URL or rule"),
        (f"{BASE} --eval.scorer judge", "--judge.model_name_or_path: it is required"),
        (f"{BASE} --eval.scorer judge --judge.model_name_or_path j", "--judge.prompt: it is required"),
        (f"{LABELLED} --eval.scorer exact {JUDGE}", "nobody asks the judge"),
        (f"{BASE} --eval.against other", "the judge of --eval.against"),
        (f"{LABELLED} --eval.scorer exact --eval.threshold 0.5", "an answer rule says right or wrong"),
        (f"{BASE} --eval.scorer none --eval.hallucination", "nothing says which answers are wrong"),
        (f"{LABELLED} --eval.scorer exact --eval.n_samples_per_prompt 2", "all of them are alike"),
        (f"{LABELLED} --eval.scorer exact --eval.k 2", "--eval.k 2: of 1 answers"),
        (f"{LABELLED} --eval.scorer exact --eval.taxonomy t", "give --eval.subject_column"),
        (f"{LABELLED} --eval.scorer exact --data.max_len 512", "raise it above --eval.max_new_tokens 512"),
        (f"{LABELLED} --eval.perplexity --eval.temperature 1", "nothing is generated without --eval.scorer"),
        (f"{LABELLED} --eval.scorer exact --eval.max_new_tokens 0", "it must be 1 or more"),
        (f"{LABELLED} --eval.scorer exact --data.input_template x", "put {} where the prompt goes"),
        (f"{BASE} --eval.lm_eval arc_easy", "--data.dataset: --eval.lm_eval's tasks bring their own"),
        (f"{BASE} --eval.scorer judge {JUDGE} --judge.mode pairwise", "--judge.mode: there is no such flag"),
    ],
)
def test_what_is_refused(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(line)
    assert said in str(caught.value)
