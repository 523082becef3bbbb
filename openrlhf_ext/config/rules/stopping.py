"""The rules of --train.stop_when: a run cannot go on until something that it never measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from openrlhf_ext.condition import Condition, parse_condition, plain
from openrlhf_ext.config.dpo import DPOConfig
from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.rm import RMConfig
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation
from openrlhf_ext.config.sft import SFTConfig

FLAG = "--train.stop_when"
_PAIRS = ("loss", "accuracy", "margin", "calibration_error")
FIGURES: Mapping[type, tuple[str, ...]] = {
    SFTConfig: ("loss", "perplexity"),
    RMConfig: _PAIRS,
    DPOConfig: (*_PAIRS, "chosen_reward", "rejected_reward"),
    RLConfig: ("reward", "response_length", "prompts"),
}
"""The last parts of the figures of an evaluation."""
OF_ANSWERS = ("accuracy", "pass@1", "score", "unanswered", "truncated", "questions", "failed")
"""Of answers that are sampled: they have their data set, group or subject before them, and pass@k for its k."""
LESS_IS_BETTER = ("loss", "perplexity", "calibration_error", "unanswered", "truncated", "failed")


def figures_of(config: Any) -> tuple[str, ...]:
    """The last parts of the names that this run's evaluations have."""
    names = FIGURES[type(config)]
    if isinstance(config, RLConfig) or getattr(config.eval, "scorer", None) is not None:
        names = (*names, *OF_ANSWERS, f"pass@{config.eval.n_samples_per_prompt}")
    return tuple(dict.fromkeys(names))


def figure_meant(condition: Condition, config: Any) -> str | None:
    """The last part of the figure that a condition is of (None: the run has none of this name)."""
    name = plain(condition.metric)
    ends = [figure for figure in figures_of(config) if name == figure or name.endswith(f"_{figure}")]
    return max(ends, key=len, default=None)


def a_goal_is_measured(config: Any, explicit: Explicit) -> Iterator[Violation]:
    text = config.train.stop_when
    if text is None:
        return
    if config.eval.dataset is None:
        yield Violation(FLAG, text, "nothing is evaluated; set --eval.dataset and --eval.steps")
    elif config.eval.steps < 1:
        yield Violation(FLAG, text, "what is evaluated at the end only stops nothing; set --eval.steps")
    try:
        condition = parse_condition(text)
    except ValueError as error:
        yield Violation(FLAG, text, str(error))
        return
    if figure_meant(condition, config) is None:
        there = ", ".join(figures_of(config))
        yield Violation(FLAG, text, f"no evaluation of this run has that figure; there are {there}")


STOPPING_RULES: tuple[Rule, ...] = (a_goal_is_measured,)
