"""Hypothesis for all unit tests: the same examples on every run, no verdict by the clock."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", max_examples=50, deadline=None, derandomize=True, database=None)
settings.load_profile("unit")
