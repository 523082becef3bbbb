"""The rules of agents."""

from __future__ import annotations

from collections.abc import Iterator

from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation


def episodes_keep_their_weights(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.has_agent and config.train.partial_rollout_enable:
        yield Violation(
            "--train.partial_rollout_enable",
            None,
            "with --train.agent_func_path the weights stay the same for an episode; leave it out "
            "(--train.async_enable alone generates while training too)",
        )


def penalties_are_of_one_answer(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    length = config.reward.overlong_buffer_len
    if config.has_agent and length is not None:
        yield Violation(
            "--reward.overlong_buffer_len",
            length,
            "it is the end of one answer, and with --train.agent_func_path there are several; leave it out, "
            "and let the agent reward lengths",
        )


AGENT_RULES: tuple[Rule, ...] = (episodes_keep_their_weights, penalties_are_of_one_answer)
