"""How likely the reference answers are to a model: mean log-probability of their tokens, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from openrlhf_ext.evaluation.agreement import LEVEL, Estimate, as_json
from openrlhf_ext.evaluation.answers import AnswerRow

RESAMPLES, SEED = 2000, 0


def likelihood(rows: Sequence[AnswerRow]) -> dict[str, Any] | None:
    """As JSON values, over each question's reference once; None where no row has its log-likelihood.

    `mean_logprob` is the sum of log-probs over the number of tokens, all references together, `perplexity` its exp(-x);
    their intervals are the percentiles of a bootstrap over questions.
    """
    asked = {row.key: row for row in rows if row.reference_logprob is not None and row.reference_tokens}
    if not asked:
        return None
    sums = np.array([row.reference_logprob for row in asked.values()])
    tokens = np.array([row.reference_tokens for row in asked.values()], dtype=float)
    n = len(asked)
    draws = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    means = (draws @ sums) / (draws @ tokens)
    low, high = (float(each) for each in np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    mean = float(sums.sum() / tokens.sum())
    return {
        "questions": n,
        "tokens": int(tokens.sum()),
        "mean_logprob": as_json(Estimate(mean, low, high)),
        "perplexity": as_json(Estimate(math.exp(-mean), math.exp(-high), math.exp(-low))),
    }
