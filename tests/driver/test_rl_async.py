"""Generation ahead of training: the same loop, how far ahead, at rest when it must be, exact after a kill."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import CountingReward
from rl_job import SETTINGS, Job
from test_rl_critic import PPO
from test_rl_filtering import FILTERING, EveryThirdIsTooHard

from openrlhf_ext.errors import RewardError
from openrlhf_ext.trainers.journal import Cadence
from openrlhf_ext.trainers.settings import RLSettings
from openrlhf_ext.types import Prompt, ScoreFailure

PATIENCE = 20.0


def ahead(lag: int, settings: RLSettings = SETTINGS, *, partial: bool = False) -> RLSettings:
    return replace(settings, max_lag=lag, partial=partial)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rollouts")]


def waits_for_a_result(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code is not Future.result.__code__:
        frame = frame.f_back
    return frame is not None


def test_without_lag_there_is_no_thread_and_nothing_waits(tmp_path: Path) -> None:
    seen: list[str] = []
    job = Job(tmp_path, during_update=lambda: seen.extend(threads()))
    job.run()
    assert seen == []
    assert job.metric("seconds/wait") == []


@pytest.mark.parametrize("lag", [1, 2])
def test_lag_changes_the_weights_that_sample_and_nothing_else(tmp_path: Path, lag: int) -> None:
    now, later = (
        Job(tmp_path / "now", lr=0.0, episodes=3),
        Job(tmp_path / "later", lr=0.0, episodes=3, settings=ahead(lag)),
    )
    now.run()
    later.run()
    tokens = [
        [[m.rollout.token_ids.tolist() for g in step.groups for m in g.members] for step in job.recorded()]
        for job in (now, later)
    ]
    assert tokens[0] == tokens[1]
    assert later.metric("rollout/staleness") == [float(min(step, lag)) for step in range(6)]
    assert now.metric("reward") == later.metric("reward")


@pytest.mark.parametrize("partial", [False, True])
def test_generation_goes_on_while_the_policy_is_updated(tmp_path: Path, partial: bool) -> None:
    """Each waits for the other: the update of a step for the next step's generation to begin, and that to end for
    the update to begin. One after the other they would wait in vain."""
    updating, generating = threading.Event(), threading.Event()
    first_seed: list[int] = []
    met: list[bool] = []

    def during_generate(prompt: Prompt, seed: int) -> None:
        first_seed.append(seed)
        if seed != first_seed[0] and not generating.is_set():
            generating.set()
            met.append(updating.wait(PATIENCE))

    def during_update() -> None:
        updating.set()
        met.append(generating.wait(PATIENCE))

    job = Job(
        tmp_path, settings=ahead(1, partial=partial), during_update=during_update, during_generate=during_generate
    )
    job.run()
    assert len(met) == 5
    assert all(met)
    for _, values in job.tracker.lines:
        assert "seconds/wait" in values
    assert sum(job.metric("seconds/generate")) > 0.0
    assert threads() == []


def test_weights_wait_for_the_answers_in_flight_unless_they_may_be_partial(tmp_path: Path) -> None:
    def versions(partial: bool) -> set[tuple[int, int]]:
        updated = threading.Event()
        job = Job(tmp_path / str(partial), settings=ahead(1, partial=partial), episodes=1, during_update=updated.set)
        seeds: set[int] = set()

        def during_generate(prompt: Prompt, seed: int) -> None:
            seeds.add(seed)
            if len(seeds) == 2 and "publish 1" not in job.calls:  # the second step's answers take their time
                assert updated.wait(PATIENCE)
                threading.Event().wait(0.02)

        job.during_generate = during_generate
        job.run()
        return {member.rollout.versions for group in job.recorded()[1].groups for member in group.members}

    assert versions(partial=False) == {(0, 0)}
    assert max(versions(partial=True)) == (1, 1)


@pytest.mark.parametrize("lag", [1, 2])
def test_two_runs_ahead_are_the_same_run(tmp_path: Path, lag: int) -> None:
    jobs = [Job(tmp_path / name, settings=ahead(lag), evaluates=True, cadence=Cadence(evaluate=2)) for name in "ab"]
    for job in jobs:
        job.run()
    assert jobs[0].trace == jobs[1].trace
    assert jobs[0].recorded() == jobs[1].recorded()


def test_over_five_seeds_it_learns_ahead_what_it_learns_in_time(tmp_path: Path) -> None:
    def held_out(name: str, settings: RLSettings) -> float:
        curve = []
        for seed in range(5):
            folder = tmp_path / name / str(seed)
            job = Job(folder, settings=replace(settings, seed=seed), episodes=6, prompts=16, evaluates=True, lr=2.0)
            job.run()
            before, after = job.metric("eval/held_out/reward")
            assert before < 0.4
            curve.append(after)
        return sum(curve) / len(curve)

    in_time = held_out("in time", SETTINGS)
    assert in_time > 0.9
    assert held_out("ahead", ahead(1)) == pytest.approx(in_time, abs=0.03)
    assert held_out("partial", ahead(1, partial=True)) == pytest.approx(in_time, abs=0.03)


def test_a_partial_answer_is_begun_with_one_version_and_ended_with_another(tmp_path: Path) -> None:
    job = Job(
        tmp_path, settings=ahead(1, partial=True), episodes=4, evaluates=True, cadence=Cadence(evaluate=3, save=2)
    )
    asked: dict[int, int] = {}

    def published() -> int:
        return len([call for call in job.calls if call.startswith("publish")])

    def during_generate(prompt: Prompt, seed: int) -> None:
        """The first answers of the second and the third round wait in their middle until new weights have come."""
        if prompt.source == "held_out":
            return
        asked[seed] = asked.get(seed, 0) + 1
        if asked[seed] == 2 and len(asked) in (2, 3):
            before, waited = published(), threading.Event()
            while published() == before and not waited.wait(0.005):
                pass

    job.during_generate = during_generate
    job.run()
    versions = [m.rollout.versions for step in job.recorded() for g in step.groups for m in g.members]
    assert any(low < high for low, high in versions)
    assert all(low <= high for low, high in versions)
    assert max(job.metric("rollout/staleness_max")) == 1.0


class FailsInTheThirdRound(CountingReward):
    def score(self, groups: Sequence) -> list:
        if self._calls.count("score") == 2:
            raise RewardError("reward.py: reward_func raised KeyError three times")
        return super().score(groups)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_an_error_in_the_background_ends_the_run_at_its_step_and_the_run_can_go_on(tmp_path: Path, lag: int) -> None:
    shape = {"settings": ahead(lag), "cadence": Cadence(save=1), "episodes": 3}
    job = Job(tmp_path / "broken", reward=FailsInTheThirdRound, **shape)
    with pytest.raises(RewardError, match="KeyError"):
        job.run()
    assert threads() == []
    assert [found.step for found in job.store.checkpoints()] == [1, 2]
    whole, mended = Job(tmp_path / "whole", **shape), replace(job, reward=CountingReward)
    whole.run()
    assert mended.run(resume=True) == 6
    assert [group.prompt for step in mended.recorded() for group in step.groups] == [
        group.prompt for step in whole.recorded() for group in step.groups
    ]
    if not lag:  # what failed is drawn again, now by newer weights
        assert mended.trace == whole.trace[2:]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_run_leaves_no_thread(tmp_path: Path, error: type[BaseException]) -> None:
    generating = threading.Event()
    job = Job(tmp_path, settings=ahead(2), episodes=6)

    def during_generate(prompt: Prompt, seed: int) -> None:
        generating.set()

    def during_update() -> None:
        assert generating.wait(PATIENCE)
        raise error

    job.during_generate, job.during_update = during_generate, during_update
    with pytest.raises(error):
        job.run()
    assert threads() == []
    assert len([call for call in job.calls if call.startswith("generate")]) <= 3


def test_ctrl_c_while_the_loop_waits_for_rollouts_ends_it(tmp_path: Path) -> None:
    asked: list[int] = []

    def during_generate(prompt: Prompt, seed: int) -> None:
        asked.append(seed)
        if len(asked) == 3:
            while not waits_for_a_result(threading.main_thread()):
                threading.Event().wait(0.005)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    job = Job(tmp_path, settings=ahead(1), during_generate=during_generate)
    # A shell starts what it puts into the background with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            job.run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert threads() == []
    assert "update 1" not in job.calls
    assert job.calls.count("score") <= 1


class Killed(BaseException):
    pass


EVERYTHING = replace(
    PPO,
    filter_range=(0.0, 1.0),
    freezing_steps=1,
    epochs=2,
    batch_size=6,
    kl_target=0.05,
    kl_horizon=100,
    advantage=replace(PPO.advantage, kl_coef=0.1),
)


@pytest.mark.parametrize("killed_in_update", [3, 5])
@pytest.mark.parametrize(
    ("lag", "rounds", "settings"),
    [
        (0, 2, EVERYTHING),
        (1, 1, EVERYTHING),
        (1, 2, FILTERING),
        (2, 1, FILTERING),
        (2, 3, EVERYTHING),
        (1, 1, SETTINGS),
    ],
)
def test_a_killed_run_goes_on_with_the_rollouts_it_had(
    tmp_path: Path, lag: int, rounds: int, settings: RLSettings, killed_in_update: int
) -> None:
    shape = {
        "settings": ahead(lag, settings),
        "reward": EveryThirdIsTooHard,
        "reference": settings is EVERYTHING,
        "failing": {"default-4": ScoreFailure("timeout", "too slow")},
        "prompts": 18,
        "prompt_batch": 3,
        "round_size": 3 * rounds,
        "episodes": 2,
        "cadence": Cadence(save=2, evaluate=3, best="pass@1"),
        "evaluates": True,
    }
    whole = Job(tmp_path / "whole", **shape)
    steps = whole.run()
    started = 0

    def kill() -> None:
        nonlocal started
        started += 1
        if started == killed_in_update:
            raise Killed

    broken = Job(tmp_path / "broken", **shape, during_update=kill)
    with pytest.raises(Killed):
        broken.run()
    checkpoint = broken.store.latest()
    assert checkpoint is not None
    kept = len(list((checkpoint.path / "rollouts").glob("*.parquet")))
    assert kept == checkpoint.state["ready"]
    assert kept >= lag
    resumed = replace(broken, during_update=lambda: None)
    assert resumed.run(resume=True) == steps
    assert resumed.trace == [line for line in whole.trace if line[0] > checkpoint.step]
    assert resumed.recorded() == whole.recorded()
    assert bool((resumed.policy.engine.table == whole.policy.engine.table).all())
    ends = [job.store.latest() for job in (whole, resumed)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert (ends[0].step, ends[0].state) == (ends[1].step, ends[1].state)


def test_less_lag_after_a_resume_uses_up_what_is_ready_first(tmp_path: Path) -> None:
    def kill() -> None:
        if len([call for call in job.calls if call.startswith("update")]) == 5:
            raise Killed

    job = Job(tmp_path, settings=ahead(2), episodes=4, cadence=Cadence(save=2), during_update=kill)
    with pytest.raises(Killed):
        job.run()
    synchronous = replace(job, settings=SETTINGS, during_update=lambda: None)
    assert synchronous.run(resume=True) == 8
    assert synchronous.metric("rollout/staleness_max") == [2.0, 2.0, 0.0, 0.0]
