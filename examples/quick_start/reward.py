"""1 where the last number of the answer is the sorted digits, 0 otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **kwargs: Any) -> dict[str, Any]:
    """`queries` are prompt and answer in one text, `labels` the right answers."""
    rewards, same_digits = [], []
    for query, prompt, label in zip(queries, prompts, labels, strict=True):
        given = (re.findall(r"\d+", query[len(prompt) :]) or [""])[-1]
        rewards.append(float(given == label))
        same_digits.append(float(sorted(given) == sorted(label)))
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"same_digits": same_digits}}
