"""Reward files and servers, each called once on the first prompts.

What is needed is imported with this module, before any thread starts (see `packages.find_imports`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from openrlhf_ext.cli.checks.finding import Finding, error, in_two, of_error, ok, warning
from openrlhf_ext.cli.checks.subject import Subject
from openrlhf_ext.cli.rl_rewards import reward_settings, reward_sources
from openrlhf_ext.errors import RewardError, UserError
from openrlhf_ext.rewards.answer import AnswerError
from openrlhf_ext.rewards.judge.judge import Judge
from openrlhf_ext.rewards.load import RewardSettings, load_reward

AREA = "reward"
SENT = '{"query": [...], "prompts": [...], "labels": [...]}, and answers {"rewards": [...]}'
LOAD, CALL, PROMPTS = 0.6, 0.4, 0.6
"""Parts of the time of all checks: to be imported, to answer a call, to wait for the first prompts."""


def find_rewards(subject: Subject) -> Iterator[Finding]:
    config = subject.config
    sources = reward_sources(config)
    weights = config.reward.weights or (1.0,) * len(sources)  # the rules say so if there are too few
    for source, weight in zip(sources, weights, strict=False):
        if weight == 0:
            yield warning(AREA, f"{source} has the weight 0 and never counts", "leave it out, or weigh it.")
        settings = replace(reward_settings(config), weights=(), normalize=())
        short = replace(settings, timeout_s=min(settings.timeout_s, CALL * subject.limit_s))
        short = replace(short, load_timeout_s=min(short.load_timeout_s, LOAD * subject.limit_s))
        try:
            yield from _trial(subject, source, short)
        except RewardError as raised:
            yield _failed(source, raised, settings.timeout_s, short.timeout_s)
        except UserError as raised:
            yield of_error(AREA, raised)


def _trial(subject: Subject, source: str, settings: RewardSettings) -> Iterator[Finding]:
    judge = Judge(None) if subject.config.has_judge else None  # a trial call ends where it asks it
    with load_reward([source], settings, judge=judge) as reward:
        reward.start()  # while the first prompts are on their way
        prompts = subject.wait_for_prompts(PROMPTS * subject.limit_s)
        if not prompts and "://" not in source:  # it may need the rows' own columns
            text = f"{source} can be imported, and was not called, for want of prompts"
            yield warning(AREA, text, "mend the data, and check again.")
            return
        reward.probe(prompts)
    what = "the first prompts" if prompts else "a made-up prompt"
    yield ok(AREA, f"{source} answered a trial call on {what} with numbers")


def _failed(source: str, raised: RewardError, limit_s: float, given_s: float) -> Finding:
    reason = raised.__context__
    if isinstance(reason, AnswerError) and reason.reason == "timeout":
        if given_s < limit_s:
            return warning(
                AREA,
                f"{source} gave no answer to a trial call within {given_s:g} s, of the {limit_s:g} of "
                "--reward.timeout_s",
                "call it by hand and see how long it takes; the run makes the same call before it starts.",
            )
        return error(
            AREA,
            f"{source} gave no answer to a trial call within the {limit_s:g} s of --reward.timeout_s",
            "make it faster, or raise --reward.timeout_s.",
        )
    text, remedy = in_two(str(raised))
    if isinstance(reason, AnswerError) and "://" in source:
        remedy = f"start the server, and check the port and path; it is sent a POST of {SENT}."
    return error(AREA, text, remedy or "name a Python file with reward_func, or a URL.")
