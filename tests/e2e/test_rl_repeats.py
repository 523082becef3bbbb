"""The same seed gives the same run: again, after a kill, and on other numbers of ranks and engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from base_run import BaseRun
from jobs import job, run
from scenario import FLAGS, STEPS, Record, output_to

KILLED_AFTER = 3  # checkpoints are written after steps 2, 4 and 6


@dataclass(frozen=True)
class Killed:
    """What was there when the driver was killed, how long its processes lived on, and the run that was resumed."""

    before: list[dict[str, Any]]
    seconds_until_gone: float
    resumed: Record
    resumed_output: str


@pytest.fixture(scope="module")
def killed(base: BaseRun, workshop: Path) -> Killed:
    # The base run's own config, given back, is the same command.
    flags = ["--config", "base/config.yaml", *output_to("killed")]
    record = Record(workshop / "killed")
    with job("rl", flags, workshop) as started:
        started.until(lambda: KILLED_AFTER in record.steps(), f"step {KILLED_AFTER}")
        started.kill_driver()
        before = record.repeatable()
        seconds = started.until_gone()
    output = run("rl", [*flags, "--ckpt.load_enable"], workshop)
    return Killed(before, seconds, record, output)


def test_the_same_command_gives_the_same_steps(base: BaseRun, killed: Killed):
    assert killed.before == base.record.repeatable()[: len(killed.before)]
    assert killed.before[-1]["step"] >= KILLED_AFTER
    assert [line["reward"] for line in killed.before[1:]] == [
        line["reward"] for line in base.record.metrics()[1 : len(killed.before)]
    ]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(base: BaseRun, killed: Killed):
    assert f"step 1/{STEPS}" not in killed.resumed_output
    assert f"step {STEPS}/{STEPS}" in killed.resumed_output
    assert killed.resumed.repeatable() == base.record.repeatable()
    for step in range(1, STEPS + 1):
        assert killed.resumed.rollouts(step) == base.record.rollouts(step)


def test_a_killed_run_leaves_no_process(killed: Killed):
    assert killed.seconds_until_gone < 30


@pytest.fixture(scope="module")
def spread(workshop: Path) -> Record:
    ranks = ["--vllm.num_engines", "2", "--actor.num_gpus_per_node", "2", "--ds.zero_stage", "3"]
    run("rl", [*FLAGS, *ranks, *output_to("spread")], workshop)
    return Record(workshop / "spread")


@pytest.mark.slow
def test_two_engines_and_two_sharded_ranks_give_the_same_rewards(base: BaseRun, spread: Record):
    for step in range(1, STEPS + 1):
        assert spread.rewards(step) == base.record.rewards(step)
    for ours, theirs in zip(spread.metrics()[1:], base.record.metrics()[1:], strict=True):
        for name in ("policy/loss", "policy/kl", "policy/grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), (ours["step"], name)
