"""The rules of the student."""

from __future__ import annotations

from openrlhf_ext.config.rules.violation import Rule

STUDENT_RULES: tuple[Rule, ...] = ()
