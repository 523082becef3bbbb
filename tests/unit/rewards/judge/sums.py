"""A rubric and cases that the rule of `openai_server` can judge."""

from __future__ import annotations

from openrlhf_ext.rewards.judge.prompt import Case
from openrlhf_ext.rewards.judge.rubric_file import read_rubric

TEXT = """
instructions: |
  Is the sum right?
  The task: {{ prompt }}
  The right answer: {{ label }}
  The response:
  {{ response }}
criteria:
  - {name: correct, description: The answer is right., scale: boolean, weight: 3}
  - {name: grade, description: The quality., scale: {integer: [1, 10]}}
limits: {response: 3000}
"""
RUBRIC = read_rubric(TEXT, "sums.yaml")


def case(i: int, *, right: bool = True, more: str = "") -> Case:
    """The sum i + i with a right or wrong answer of several lines."""
    said = 2 * i if right else 2 * i + 1
    return Case(f"What is {i} + {i}?", f"I add {i} and {i}.\nAnswer: {said}\n{more}", str(2 * i))
