"""The model in training as a generator, for evaluations of a run that has no engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain

from openrlhf_ext.ports import SupervisedRole
from openrlhf_ext.types import Prompt, Rollout, Sampling, derive_seed

Decode = Callable[[Sequence[int]], str]
"""Tokens as text, without those that are special."""


class TrainedGenerator:
    """A `Generator` over a supervised role: its own weights answer, adapters included, `rows` prompts at a time.

    `end` is the tokenizer's end of sequence. Log-probs of what was sampled are not computed: they are NaN.
    """

    def __init__(self, model: SupervisedRole, decode: Decode, end: int, rows: int) -> None:
        self.version = 0
        self._model = model
        self._decode = decode
        self._end = end
        self._rows = rows

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        asked = [(prompt, sample) for prompt in prompts for sample in range(sampling.n)]
        seeds = [derive_seed(sampling.seed, prompt.id, sample) for prompt, sample in asked]
        tokens = [prompt.token_ids for prompt, _ in asked]
        answers = self._model.generate(tokens, seeds, sampling, end=self._end, rows=self._rows)
        rollouts = [self._rollout(*each, answer, sampling) for each, answer in zip(asked, answers, strict=True)]
        return [rollouts[start : start + sampling.n] for start in range(0, len(rollouts), sampling.n)]

    def _rollout(self, prompt: Prompt, sample: int, answer: Sequence[int], sampling: Sampling) -> Rollout:
        room = (sampling.max_total_tokens or 2**31) - len(prompt.token_ids)
        full = len(answer) == min(sampling.max_new_tokens, room)
        return Rollout.of_turn(
            prompt.token_ids,
            answer,
            [math.nan] * len(answer),
            prompt_id=prompt.id,
            sample=sample,
            text=self._decode(answer),
            finish_reason="length" if full and answer[-1] != self._end else "stop",
            versions=(self.version, self.version),
        )


def dealt(prompts: Sequence[Sequence[int]], ranks: int) -> list[list[int]]:
    """The places of the prompts that each rank answers: about as many, of about the same lengths."""
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    return [order[rank::ranks] for rank in range(ranks)]


def collected(shares: Sequence[Sequence[int]], answers: Sequence[Sequence[list[int]]]) -> list[list[int]]:
    """The ranks' answers to their shares, in the order of the prompts."""
    found = dict(zip(chain(*shares), chain(*answers), strict=True))
    return [found[place] for place in range(len(found))]
