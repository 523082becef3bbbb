"""The rules of the judge."""

from __future__ import annotations

from openrlhf_ext.config.rules.violation import Rule

JUDGE_RULES: tuple[Rule, ...] = ()
