"""The driver and a reference that follows the policy: when it moves, and what a checkpoint holds of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rl_job import SETTINGS, Job

from openrlhf_ext.errors import DataError
from openrlhf_ext.ops.advantage import AdvantageSettings
from openrlhf_ext.trainers.journal import Cadence

KL = replace(SETTINGS, advantage=AdvantageSettings("reinforce_baseline", kl_coef=0.1))
FOLLOWING = replace(KL, ref_every=2, ref_mixup=0.5)


def job(folder: Path, settings=FOLLOWING, **changes) -> Job:  # six steps
    return Job(folder, settings=settings, prompts=8, episodes=3, reference=True, **changes)


def test_it_moves_after_the_update_and_before_the_engines_get_the_weights(tmp_path: Path):
    following = job(tmp_path)
    assert following.run() == 6
    steps = " ".join(call.split()[0] for call in following.calls).split("generate")[1:]
    assert [step.split().count("mix") for step in steps] == [0, 1, 0, 1, 0, 1]
    assert "update mix publish" in steps[1]
    assert following.metric("reference/followed") == [1.0, 1.0, 1.0]
    assert len(following.metric("seconds/mix")) == 3


def test_it_changes_what_is_learned_from_the_next_step_on(tmp_path: Path):
    following, resting = job(tmp_path / "a"), job(tmp_path / "b", KL)
    following.run()
    resting.run()
    assert following.metric("policy/kl")[:2] == resting.metric("policy/kl")[:2]
    assert following.metric("policy/kl")[2] < resting.metric("policy/kl")[2]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path):
    whole = job(tmp_path / "whole")
    whole.run()
    stopped = job(tmp_path / "cut", cadence=Cadence(save=1), stop=lambda: len(stopped.tracker.lines) >= 3)
    stopped.run()
    resumed = job(tmp_path / "cut")
    resumed.run(resume=True)
    assert 0 < len(resumed.trace) < len(whole.trace)
    assert resumed.trace == whole.trace[-len(resumed.trace) :]
    assert (resumed.policy.engine.table == whole.policy.engine.table).all()


@pytest.mark.parametrize(("first", "then", "held"), [(KL, FOLLOWING, "no"), (FOLLOWING, KL, "a")])
def test_a_checkpoint_without_it_or_of_it_is_refused(tmp_path: Path, first, then, held: str):
    job(tmp_path, first).run()
    with pytest.raises(DataError, match=f"holds {held} reference that follows the policy"):
        job(tmp_path, then).run(resume=True)
