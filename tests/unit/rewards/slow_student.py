"""The reward of a teacher written out once more: plain transformers, one row at a time, Python loops over tokens."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch


def token_logprobs(model: Any, context: list[int], tokens: list[int], temperature: float) -> list[float]:
    """log p(token | context and the tokens before it), in nats."""
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *tokens]])).logits[0].double() / temperature
    found = []
    for index, token in enumerate(tokens):
        row = logits[len(context) + index - 1].tolist()
        highest = max(row)
        found.append(row[token] - highest - math.log(sum(math.exp(value - highest) for value in row)))
    return found


def slow_reward(solution: list[float], teacher: list[float], student: list[float], matched: bool) -> float:
    """With the paper's weights: 1 and 0.01 of mean and least, 3 and 0.03 of mean and largest."""
    gap = [a - b for a, b in zip(teacher, student, strict=True)]
    reward = statistics.fmean(solution) + 0.01 * min(solution)
    if gap:
        reward -= 3 * statistics.fmean(gap) + 0.03 * max(gap)
    return reward if matched else reward - 1
