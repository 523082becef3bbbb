"""1 where the number after `####` is the right one, 0 otherwise (GSM8K: Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

FINAL = re.compile(r"####\s*\$?\s*(-?[\d,]*\.?\d+)")


def final_number(text: str) -> Decimal | None:
    """The number after the last `####`, without thousands separators; None where there is none."""
    found = FINAL.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **kwargs: Any) -> dict[str, Any]:
    """`labels` are GSM8K's own `answer` column: the worked solution with its last line `#### N`."""
    rewards, formatted = [], []
    for query, prompt, label in zip(queries, prompts, labels, strict=True):
        given = final_number(query[len(prompt) :])
        formatted.append(float(given is not None))
        rewards.append(float(given is not None and given == final_number(label)))
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"has_final_number": formatted}}
