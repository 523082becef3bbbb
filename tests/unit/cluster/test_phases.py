"""Who is awake when: what a phase needs is there, and the policy and the KV cache are never in memory together."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.cluster.phases import Part, Phase, Phases, Sleeper

PHASES: tuple[Phase, ...] = get_args(Phase)
NEEDS = {
    "generate": {"weights", "kv_cache"},
    "score": {"reward", "student"},
    "train": {"policy", "reference", "critic"},
    "publish": {"policy", "weights"},
    "critic_files": {"critic", "weights"},
    "reference_files": {"reference", "weights"},
}


class Gpu:
    """What lies in memory, told by the calls alone; the most that ever lay there at once."""

    def __init__(self, asleep: tuple[str, ...]) -> None:
        parts: dict[str, frozenset[Part]] = {
            "engines": frozenset({"weights", "kv_cache"}),
            "policy": frozenset({"policy"}),
            "reference": frozenset({"reference"}),
            "critic": frozenset({"critic"}),
            "reward": frozenset({"reward"}),
            "student": frozenset({"student"}),
        }
        self.held: set[Part] = set().union(*(parts[name] for name in parts if name not in asleep))
        self.calls: list[tuple[str, frozenset[Part]]] = []
        self.together: list[set[Part]] = []
        self.phases = Phases({name: self.sleeper(parts[name]) for name in parts}, asleep)

    def sleeper(self, parts: frozenset[Part]) -> Sleeper:
        def sleep() -> None:
            assert self.held & parts, "asleep already"
            self.held -= parts
            self.calls.append(("sleep", parts))

        def wake(woken: frozenset[Part]) -> None:
            assert woken and not self.held & woken, "awake already"
            self.held |= woken
            self.together.append(set(self.held))
            self.calls.append(("wake", woken))

        return Sleeper(parts, sleep, wake)


@given(phases=st.lists(st.sampled_from(PHASES), max_size=12))
def test_a_phase_finds_what_it_needs_and_nothing_else(phases: list[Phase]):
    gpu = Gpu(asleep=("engines",))
    for phase in phases:
        gpu.phases.enter(phase)
        assert gpu.held == NEEDS[phase]
        calls = len(gpu.calls)
        gpu.phases.enter(phase)
        assert len(gpu.calls) == calls, "entering a phase again moves nothing"
    assert not any({"policy", "kv_cache"} <= held for held in gpu.together)


def test_a_step_moves_each_part_once():
    gpu = Gpu(asleep=("engines",))
    gpu.phases.enter("generate")
    gpu.calls.clear()
    for phase in ("score", "train", "publish", "generate"):
        gpu.phases.enter(phase)
    assert gpu.calls == [
        ("sleep", {"weights", "kv_cache"}),
        ("wake", {"reward"}),
        ("wake", {"student"}),
        ("sleep", {"reward"}),
        ("sleep", {"student"}),
        ("wake", {"policy"}),
        ("wake", {"reference"}),
        ("wake", {"critic"}),
        ("sleep", {"reference"}),
        ("sleep", {"critic"}),
        ("wake", {"weights"}),
        ("sleep", {"policy"}),
        ("wake", {"kv_cache"}),
    ]


def test_the_critics_files_are_written_without_touching_published_weights():
    gpu = Gpu(asleep=("engines",))
    gpu.phases.enter("publish")
    gpu.calls.clear()
    gpu.phases.enter("critic_files")
    gpu.phases.enter("generate")
    assert not any(name == "sleep" and "weights" in parts for name, parts in gpu.calls)


@pytest.mark.parametrize("phase", PHASES)
def test_roles_with_devices_of_their_own_are_never_asked(phase: Phase):
    Phases({}).enter(phase)
