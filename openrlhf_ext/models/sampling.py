"""Answers of a model that is in training, for its evaluation: by transformers' own generation, in the same process.

No second copy of the weights, and none of an engine's speed: vLLM samples many times as fast. Nothing that training
draws from is touched, for every answer has a generator of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from openrlhf_ext.types import Sampling


def continued(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    end: int,
    rows: int,
) -> list[list[int]]:
    """The tokens after each prompt, in order, up to and with `end` (the tokenizer's end of sequence) or another token
    that the model's settings end at: at most `max_new_tokens`, and with the prompt at most `max_total_tokens`. `rows`
    prompts are answered at a time.

    The likeliest token at temperature 0; else drawn by the answer's own seed, whoever its neighbours are (which move
    log-probs by rounding alone). The model is in evaluation mode.
    """
    assert not model.training, "dropout would be part of the answer"
    assert (sampling.top_p, sampling.top_k, sampling.min_p, sampling.stop) == (1.0, -1, 0.0, ()), "not known here"
    answers: list[list[int]] = [[] for _ in prompts]
    ends = _ends(model, end)
    # Neighbours in length together: a batch is padded to its longest prompt.
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    for start in range(0, len(order), rows):
        places = order[start : start + rows]
        found = _batch(model, [prompts[place] for place in places], [seeds[place] for place in places], sampling, ends)
        for place, answer in zip(places, found, strict=True):
            answers[place] = answer
    return answers


def _batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    ends: list[int],
) -> list[list[int]]:
    longest = max(map(len, prompts))
    tokens_BT = torch.full((len(prompts), longest), ends[0])
    mask_BT = torch.zeros_like(tokens_BT)
    for row, prompt in enumerate(prompts):  # on the left: an answer follows its prompt
        tokens_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    rooms = [min(sampling.max_new_tokens, (sampling.max_total_tokens or 2**31) - len(prompt)) for prompt in prompts]
    assert min(rooms) > 0, "a prompt leaves room for an answer"
    draws = [_Draws(seeds, sampling.temperature)] if sampling.temperature else []
    config = GenerationConfig(max_new_tokens=max(rooms), do_sample=False, eos_token_id=ends, pad_token_id=ends[0])
    with _generating_by(model, config):
        generate: Any = model.generate
        out_BT: Tensor = generate(
            tokens_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList(draws),
        )
    return [_ended(row[:room], ends) for row, room in zip(out_BT[:, longest:].tolist(), rooms, strict=True)]


def _ends(model: PreTrainedModel, end: int) -> list[int]:
    """The tokens that end an answer: the tokenizer's first, and those of the model's own settings, as vLLM does."""
    more = getattr(model.generation_config, "eos_token_id", None)
    return list(dict.fromkeys([end, *(more if isinstance(more, list) else [] if more is None else [more])]))


def _ended(answer: list[int], ends: Sequence[int]) -> list[int]:
    """Up to its first end, which is part of it."""
    end = next((place for place, token in enumerate(answer) if token in ends), len(answer))
    return answer[: end + 1]


@contextmanager
def _generating_by(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """The model's own settings (a penalty of repetitions, say) would fill in what `config` leaves open."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


class _Draws(LogitsProcessor):
    """Makes the largest logit a draw of softmax(logits / temperature), by adding Gumbel noise (Gumbel 1954: the
    argmax of logits + noise is a sample): each row from its own generator, on the CPU whatever the device."""

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        waits = [torch.empty(scores.shape[-1]).exponential_(generator=own) for own in self._generators]
        return scores.float() / self._temperature - torch.stack(waits).log().to(scores.device)
