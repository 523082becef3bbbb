"""Answers of a model in training: the likeliest tokens, draws that nobody else's change, and nothing disturbed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from openrlhf_ext.models.sampling import continued
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model
from openrlhf_ext.types import Sampling

PROMPTS = [[5, 6, 7], [9, 8], [30, 31, 32, 33, 34, 35], [12]]
SEEDS = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    build_tiny_model(folder, TinyShape(hidden=32, intermediate=64, layers=2, tie_embeddings=False))
    found = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():  # logits of a fresh model are nearly alike
        found.get_output_embeddings().weight.mul_(20.0)
    return found


def answers_to(
    model: PreTrainedModel,
    sampling: Sampling,
    prompts: Sequence[list[int]] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    rows: int = 8,
) -> list[list[int]]:
    return continued(model, prompts, seeds, sampling, end=int(model.config.eos_token_id), rows=rows)


def likeliest(model: PreTrainedModel, prompt: list[int], most: int) -> list[int]:
    """By whole forward passes, one after the other."""
    tokens, ends = list(prompt), {model.config.eos_token_id}
    while len(tokens) < len(prompt) + most and tokens[-1] not in ends:
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_without_temperature_the_likeliest_tokens_follow(model: PreTrainedModel, rows: int) -> None:
    answers = answers_to(model, Sampling(temperature=0.0, max_new_tokens=7), rows=rows)
    assert answers == [likeliest(model, prompt, 7) for prompt in PROMPTS]


def test_a_draw_depends_on_its_own_seed_and_on_no_neighbour(model: PreTrainedModel) -> None:
    sampling = Sampling(temperature=1.0, max_new_tokens=6)
    together = answers_to(model, sampling)
    alone = [answers_to(model, sampling, [prompt], [seed])[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    assert together == alone
    assert together != answers_to(model, sampling, seeds=[5, 6, 7, 8])


def test_draws_have_the_distribution_of_the_temperature(model: PreTrainedModel) -> None:
    draws = 4000
    sampling = Sampling(temperature=0.7, max_new_tokens=1)
    found = Counter(answer[0] for answer in answers_to(model, sampling, [PROMPTS[0]] * draws, range(draws), 500))
    with torch.no_grad():
        expected = (model(torch.tensor([PROMPTS[0]])).logits[0, -1] / 0.7).softmax(-1)
    for token in expected.topk(3).indices.tolist():
        p = float(expected[token])
        assert found[token] / draws == pytest.approx(p, abs=4 * (p * (1 - p) / draws) ** 0.5 + 1e-3)


def test_prompt_and_answer_together_stay_within_their_limit(model: PreTrainedModel) -> None:
    answers = answers_to(model, Sampling(temperature=1.0, max_new_tokens=6, max_total_tokens=8))
    assert [len(prompt) + len(answer) <= 8 for prompt, answer in zip(PROMPTS, answers, strict=True)] == [True] * 4
    assert len(answers[2]) <= 2


def test_settings_of_the_model_play_no_part_and_come_back(model: PreTrainedModel) -> None:
    plain = Sampling(temperature=0.0, max_new_tokens=7)
    before = answers_to(model, plain)
    model.generation_config.repetition_penalty = 5.0
    assert answers_to(model, plain) == before
    assert model.generation_config.repetition_penalty == 5.0
    model.generation_config.repetition_penalty = None


def test_the_random_state_of_training_is_not_touched(model: PreTrainedModel) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    answers_to(model, Sampling(temperature=1.0, max_new_tokens=4), rows=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_in_training_mode_does_not_answer(model: PreTrainedModel, tmp_path: Path) -> None:
    model.train()
    with pytest.raises(AssertionError, match="dropout"):
        answers_to(model, Sampling())
    model.eval()
