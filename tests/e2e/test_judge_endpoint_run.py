"""`openrlhf-ext rl` rewarded by an endpoint that is not always well, while the next step is being generated."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import run
from scenario import FLAGS, Record, output_to

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit/rewards/judge"))
from openai_server import OpenAIServer, split

pytestmark = pytest.mark.slow
RUBRIC = """\
instructions: |
  Answer: {{ response }}
criteria:
  - {name: digits, description: there is a digit in it, scale: boolean, weight: 2}
  - {name: number, description: how many there are, scale: {integer: [1, 5]}}
"""
TROUBLE = [429, 500, 503, "drop", "html", "not JSON", ("slow", 0.5), (429, {"Retry-After": "1"})]
STEPS = 4


def graded(text: str) -> dict[str, Any]:
    """By what a fence leaves as it is."""
    digits = sum(letter in "0123456789" for letter in text)
    return {"digits": digits > 0, "number": min(1 + digits, 5)}


def by_rule(prompt: str) -> dict[str, Any]:
    data = split(prompt)[1]
    return graded(data[0]) if data else {"ready": True}


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    server = OpenAIServer(by_rule).start()
    # The first is the trial question; then trouble comes with every third request.
    server.reactions.extend([None, *(each for trouble in TROUBLE for each in (None, None, trouble))])
    try:
        yield server
    finally:
        server.close()


@pytest.mark.parametrize("ahead", [(), ("--train.async_enable",)], ids=["in turn", "one step ahead"])
def test_every_rollout_has_the_verdict_of_the_rule(workshop: Path, server: OpenAIServer, ahead: tuple[str, ...]):
    (workshop / "digits.yaml").write_text(RUBRIC)
    name = f"endpoint{len(ahead)}"
    judge = ["--judge.url", server.url, "--judge.served_model_name", "judge", "--judge.prompt", "digits.yaml"]
    scenario = [*FLAGS, *judge, "--judge.cache", "off", "--judge.max_retries", "8"]
    flags = ["--reward.remote_url", "None", "--data.max_samples", "16"]
    run("rl", [*scenario, *flags, *ahead, *output_to(name)], workshop)
    record = Record(workshop / name)
    assert record.steps()[-STEPS:] == list(range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        groups = record.rollouts(step)
        assert [len(group.members) for group in groups] == [4] * 8, "nothing is lost"
        for member in (member for group in groups for member in group.members):
            right = graded(member.rollout.text)
            assert member.score.value == pytest.approx((2 * right["digits"] + (right["number"] - 1) / 4) / 3)
    total: Counter[str] = Counter()
    for line in record.metrics():
        for prefix in ("judge/", "eval/judge/"):
            total.update({key.removeprefix(prefix): value for key, value in line.items() if key.startswith(prefix)})
    assert any(line.get("eval/judge/asked") for line in record.metrics())
    assert total["no_verdict"] == 0 and total["parse_failures"] == total["retried"] == 1, "the reply that was no JSON"
    assert total["failed_requests/busy"] == 2, "both 429"
    assert total["failed_requests/crashed"] == 4, "500, 503, a lost connection, a page"
    assert len(server.requests) == 1 + total["asked"] + 6
