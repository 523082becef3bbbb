"""A reward file as OpenRLHF's documentation describes it: give it by `--reward.remote_url examples/custom_reward.py`.

The function is called once for a whole batch. `queries` are prompt and answer in one text, `prompts` the prompts,
`labels` the column named by `--data.label_key`. What it returns may hold
- `rewards`: one number per query, what the policy learns from;
- `scores`: the same between 0 and 1, what evaluation and filtering look at;
- `extra_logs`: more columns of numbers, each a metric of its own.
"""

from __future__ import annotations

import torch


def reward_func(queries, prompts, labels, **kwargs):
    """Half for naming the label, half for being short."""
    answers = [query[len(prompt) :] for query, prompt in zip(queries, prompts, strict=True)]
    names_it = torch.tensor([float(str(label) in answer) for answer, label in zip(answers, labels, strict=True)])
    brevity = torch.tensor([1.0 / (1.0 + len(answer.split()) / 50) for answer in answers])
    rewards = 0.5 * names_it + 0.5 * brevity
    return {"rewards": rewards, "scores": names_it, "extra_logs": {"brevity": brevity}}
