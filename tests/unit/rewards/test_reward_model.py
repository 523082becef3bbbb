"""A reward model as a source: its own tokens, its own template, one EOS, and nothing cut in silence."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from openrlhf_ext.data.prompts import PromptSettings, load_prompts
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.errors import DataError, RewardError
from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model
from openrlhf_ext.rewards.load import RewardSettings, load_reward
from openrlhf_ext.rewards.model import ModelSource, same_tokens
from openrlhf_ext.types import Prompt, Rollout, ScoreFailure

SHAPE = TinyShape(hidden=32, layers=1, heads=1, kv_heads=1, intermediate=64, vocab=300, max_positions=128)
OTHER_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|endoftext|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
LENGTHS = "import math\ndef reward_func(queries, prompts, labels):\n    return [float(len(q)) for q in queries]\n"


class LocalScorer:
    """The real model in this process, one row at a time."""

    def __init__(self, folder) -> None:
        self.model = build_model(ModelSpec(str(folder), dtype="fp32", kind="reward"))
        self.rows = []

    def scores(self, rows):
        self.rows += rows
        with torch.no_grad():
            return [
                float(self.model(torch.tensor([row]), torch.tensor([len(row)]), torch.zeros(1, len(row) - 1).bool())[0])
                for row in rows
            ]


def scorer_folder(folder, corpus, template=None):
    build_tiny_model(folder, SHAPE, corpus=corpus)
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(5)
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)
    if template is not None:  # another template, and another end of a sequence
        tokenizer.chat_template, tokenizer.eos_token = template, "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return load_tokenizer(build_tiny_model(tmp_path_factory.mktemp("policy") / "model", SHAPE))


@pytest.fixture(scope="module")
def same(tmp_path_factory):
    return scorer_folder(tmp_path_factory.mktemp("same") / "model", ())


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    corpus = ["what is the answer to this question"] * 5
    return scorer_folder(tmp_path_factory.mktemp("other") / "model", corpus, OTHER_TEMPLATE)


def source_of(folder, policy, *, max_tokens=128, templated=False) -> tuple[ModelSource, LocalScorer]:
    source = ModelSource(str(folder), load_tokenizer(folder), policy, max_tokens=max_tokens, templated=templated)
    scorer = LocalScorer(folder)
    source.connect(SimpleNamespace(scorer=scorer))
    return source, scorer


def prompts_of(tmp_path, policy, *texts, chat) -> list[Prompt]:
    import json

    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))
    return load_prompts(PromptSettings(str(tmp_path / "p.jsonl"), apply_chat_template=chat), policy).prompts


def rollout(policy, prompt: Prompt, text: str, ending: str = "eos", sample: int = 0) -> Rollout:
    """As the engine makes one: the EOS is a token and not part of the text, a stop string is part of it."""
    ids = policy(text, add_special_tokens=False)["input_ids"] + ([policy.eos_token_id] if ending == "eos" else [])
    tokens = (*prompt.token_ids, *ids)
    mask = (False,) * len(prompt.token_ids) + (True,) * len(ids)
    reason = "length" if ending == "length" else "stop"
    return Rollout(prompt.id, sample, tokens, mask, (0.0,) * len(tokens), text, reason, (0, 0))


def judged(folder, text: str, end: bool) -> float:
    """By transformers, from the text as the reward model should read it."""
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * end
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return float(model.score(model.model(torch.tensor([ids])).last_hidden_state)[0, -1, 0])


def score(source, groups, **settings):
    with load_reward([], RewardSettings(**settings), None, [source]) as reward:
        reward.probe()
        return reward.score(groups)


def test_whether_token_ids_mean_the_same(policy, same, other):
    assert same_tokens(policy, load_tokenizer(same))
    assert not same_tokens(policy, load_tokenizer(other))
    ends_otherwise = load_tokenizer(same)
    ends_otherwise.eos_token = "<|endoftext|>"
    assert not same_tokens(policy, ends_otherwise)


def test_the_policys_own_tokens_are_read_as_they_were_sampled(tmp_path, policy, same):
    [prompt] = prompts_of(tmp_path, policy, "what is it?", chat=True)
    source, scorer = source_of(same, policy, templated=True)
    rollouts = [rollout(policy, prompt, "an answer"), rollout(policy, prompt, "half an ans", "length", 1)]
    [scores] = score(source, [(prompt, rollouts)])
    assert [list(row) for row in scorer.rows] == [r.token_ids.tolist() for r in rollouts]
    texts = [prompt.text + "an answer", prompt.text + "half an ans"]
    expected = [judged(same, text, end) for text, end in zip(texts, (True, False))]
    assert [s.value for s in scores] == pytest.approx(expected, abs=1e-5)
    assert scores[0].parts == {"reward_model": scores[0].value, "reward_model/truncated": 0.0}
    assert scores[0].filter_value is None


@pytest.mark.parametrize("ending", ["eos", "length", "stop string"])
@pytest.mark.parametrize("chat", [False, True])
def test_another_models_tokens_template_and_end(tmp_path, policy, other, chat, ending):
    [prompt] = prompts_of(tmp_path, policy, "what is the question?", chat=chat)
    source, scorer = source_of(other, policy, templated=chat)
    [[got]] = score(source, [(prompt, [rollout(policy, prompt, "the answer", ending)])])
    text = "what is the question?the answer"
    if chat:
        text = "[user] what is the question?\n[assistant] the answer"
    assert got.value == pytest.approx(judged(other, text, ending == "eos"), abs=1e-5)
    eos = load_tokenizer(other).eos_token_id
    assert scorer.rows[0].count(eos) == (ending == "eos")
    assert len(scorer.rows[0]) < len(rollout(policy, prompt, "the answer").token_ids), "its own, shorter tokens"


def test_a_conversation_of_several_turns(tmp_path, policy, other):
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "what is it?"},
    ]
    [prompt] = prompts_of(tmp_path, policy, turns, chat=True)
    source, _ = source_of(other, policy, templated=True)
    [row] = source.token_rows([(prompt, rollout(policy, prompt, "the answer"))])
    read = load_tokenizer(other).decode(row)
    expected = "[user] hi\n[assistant] hello<|endoftext|>\n[user] what is it?\n[assistant] the answer<|endoftext|>"
    assert read == expected


def test_a_model_without_a_template_cannot_read_conversations(tmp_path, policy, other):
    tokenizer = load_tokenizer(other)
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        ModelSource("m", tokenizer, policy, max_tokens=8, templated=True)


def test_what_is_too_long_loses_its_beginning_and_is_counted(tmp_path, policy, other, caplog):
    [prompt] = prompts_of(tmp_path, policy, "what is the question?", chat=False)
    source, scorer = source_of(other, policy, max_tokens=4)
    rollouts = [rollout(policy, prompt, "the answer"), rollout(policy, prompt, "no", "length", 1)]
    with caplog.at_level(logging.WARNING):
        [scores] = score(source, [(prompt, rollouts)])
        score(source, [(prompt, rollouts)])
    whole = source.token_rows([(prompt, r) for r in rollouts])
    assert [list(row) for row in scorer.rows[:2]] == [list(row[-4:]) for row in whole]
    assert [s.parts["reward_model/truncated"] for s in scores] == [1.0, 1.0]
    told = [record.getMessage() for record in caplog.records if "lose their beginning" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("2 of 2 samples are longer than the 4 tokens")


def test_it_is_summed_with_the_other_sources_as_the_last(tmp_path, policy, same):
    (tmp_path / "reward_model.py").write_text(LENGTHS)
    [prompt] = prompts_of(tmp_path, policy, "what?", chat=False)
    source, _ = source_of(same, policy)
    rollouts = [rollout(policy, prompt, "yes"), rollout(policy, prompt, "no, not that", sample=1)]
    settings = RewardSettings(weights=(0.01, -2.0))
    with load_reward([str(tmp_path / "reward_model.py")], settings, policy, [source]) as reward:
        reward.probe([prompt])
        [scores] = reward.score([(prompt, rollouts)])
    assert reward.names == ("reward_model", "reward_model_2")
    for got, text in zip(scores, ("yes", "no, not that")):
        length = len(prompt.text + text + policy.eos_token)
        model = judged(same, prompt.text + text, end=True)
        assert got.parts["reward_model"] == length and got.parts["reward_model_2"] == pytest.approx(model, abs=1e-5)
        assert got.value == pytest.approx(0.01 * length - 2.0 * model, abs=1e-4)


def test_a_weight_for_each(policy, same):
    source, _ = source_of(same, policy)
    with pytest.raises(RewardError, match="1 reward weights for 2 rewards"):
        load_reward(["http://127.0.0.1:1"], RewardSettings(weights=(1.0,)), policy, [source])


def test_a_score_that_is_no_number_fails_its_group(tmp_path, policy, same):
    prompts = prompts_of(tmp_path, policy, "what?", "who?", chat=False)
    source, scorer = source_of(same, policy)
    with torch.no_grad():  # one token of the second prompt alone has no finite embedding
        only = (set(prompts[1].token_ids) - set(prompts[0].token_ids)).pop()
        scorer.model.model.model.embed_tokens.weight[only] = float("nan")
    groups = [(prompt, [rollout(policy, prompt, "a")]) for prompt in prompts]
    good, bad = score(source, groups, on_error="drop_group", max_retries=0)
    assert good[0].value == pytest.approx(judged(same, "what?a", end=True), abs=1e-5)
    assert isinstance(bad, ScoreFailure) and bad.reason == "not_finite"


def test_nothing_to_ask(policy):
    with pytest.raises(RewardError, match=r"--reward\.remote_url .* or --reward\.model_name_or_path"):
        load_reward([], RewardSettings(), policy)
