"""What no single flag can say by its type: ranges, and flags at odds with each other.

A rule is a small named function of the tree and the explicit paths; all of them run, and every violation
is reported at once.
"""

from __future__ import annotations

from typing import Any

from openrlhf_ext.config.annotate import AnnotateConfig
from openrlhf_ext.config.assess import AssessConfig, AssessExportConfig, AssessReportConfig
from openrlhf_ext.config.evaluation import EvalConfig
from openrlhf_ext.config.judge_command import CalibrateConfig, ServeJudgeConfig
from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.rules.advice import ADVICE
from openrlhf_ext.config.rules.agent import AGENT_RULES
from openrlhf_ext.config.rules.algorithm import ALGORITHM_RULES
from openrlhf_ext.config.rules.annotate import ANNOTATE_RULES
from openrlhf_ext.config.rules.assess import ASSESS_EXPORT_RULES, ASSESS_REPORT_RULES, ASSESS_RULES
from openrlhf_ext.config.rules.common import COMMON_RULES
from openrlhf_ext.config.rules.effects import idle_paths
from openrlhf_ext.config.rules.evaluation import COMPARE_RULES, EVAL_RULES
from openrlhf_ext.config.rules.judge import JUDGE_RULES
from openrlhf_ext.config.rules.judge_command import CALIBRATE_RULES, SERVE_JUDGE_RULES
from openrlhf_ext.config.rules.rl import RL_RULES
from openrlhf_ext.config.rules.serve_rm import SERVE_RM_RULES
from openrlhf_ext.config.rules.stopping import STOPPING_RULES
from openrlhf_ext.config.rules.student import STUDENT_RULES
from openrlhf_ext.config.rules.supervised import SUPERVISED_RULES
from openrlhf_ext.config.rules.violation import Explicit, Violation, accumulation
from openrlhf_ext.config.serve_rm import ServeRMConfig

__all__ = ["Violation", "accumulation", "advice", "broken_rules", "idle_paths"]


def broken_rules(config: Any, explicit: Explicit) -> list[Violation]:
    """Every violation of every rule of this command."""
    if isinstance(config, ServeRMConfig):
        rules = SERVE_RM_RULES
    elif isinstance(config, CalibrateConfig):
        rules = CALIBRATE_RULES
    elif isinstance(config, ServeJudgeConfig):
        rules = SERVE_JUDGE_RULES
    elif isinstance(config, AnnotateConfig):
        rules = ANNOTATE_RULES
    elif isinstance(config, AssessConfig):
        rules = ASSESS_RULES
    elif isinstance(config, AssessReportConfig):
        rules = ASSESS_REPORT_RULES
    elif isinstance(config, AssessExportConfig):
        rules = ASSESS_EXPORT_RULES
    elif isinstance(config, EvalConfig):
        rules = EVAL_RULES if config.compare is None else COMPARE_RULES
    elif isinstance(config, RLConfig):
        rules = (
            *COMMON_RULES,
            *STOPPING_RULES,
            *RL_RULES,
            *ALGORITHM_RULES,
            *JUDGE_RULES,
            *STUDENT_RULES,
            *AGENT_RULES,
        )
    else:
        rules = (*COMMON_RULES, *STOPPING_RULES, *SUPERVISED_RULES[type(config)])
    return [violation for rule in rules for violation in rule(config, explicit)]


def advice(config: Any) -> list[str]:
    """What is allowed and probably not meant, or means something else than it seems to."""
    return [note for ask in ADVICE if isinstance(config, RLConfig) for note in ask(config)]
