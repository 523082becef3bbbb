"""A step loop and updates in threads of their own: never both at once, and nobody starves or waits for ever."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from openrlhf_ext.rollout.turns import Turns

SECONDS = 20  # no wait of these tests takes so long


class Loop:
    """Steps without a rest until told to stop, and counts."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.steps, self.inside, self.over = turns, 0, False, False

    def __call__(self) -> int:
        while not self.over:
            with self.turns.step():
                self.inside = True
                time.sleep(0.0005)
                self.steps += 1
                self.inside = False
        return self.steps


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_no_step_during_an_update_and_one_between_two(pool: ThreadPoolExecutor):
    turns = Turns()
    loop = Loop(turns)
    steps = pool.submit(loop)
    seen = []
    for _ in range(100):
        turns.begin_update()
        assert not loop.inside
        before = loop.steps
        with turns.part_of_update():
            time.sleep(0.002)  # long enough for a loop that does not wait to be seen, and for one that does to wait
        assert loop.steps == before
        seen.append(before)
        turns.end_update()
    loop.over = True
    assert steps.result(SECONDS) >= 100
    # A loop that has not come to its turn yet is nobody to wait for.
    begun = [steps for steps in seen if steps]
    assert len(begun) > 90
    assert begun == sorted(set(begun)), "a step between two updates"


def test_an_update_waits_for_the_step_that_is_under_way(pool: ThreadPoolExecutor):
    turns = Turns()
    with turns.step():
        update = pool.submit(turns.begin_update)
        while not turns.updating:
            time.sleep(0.001)
        assert not update.done()
    update.result(SECONDS)
    assert turns.updating


def test_a_failed_update_ends_the_loop_that_waits_and_all_that_come_later(pool: ThreadPoolExecutor):
    turns = Turns()
    turns.begin_update()
    waiting = pool.submit(Loop(turns))
    with pytest.raises(KeyError), turns.part_of_update():
        raise KeyError("lm_head")
    with pytest.raises(RuntimeError, match="failed half-way") as raised:
        waiting.result(SECONDS)
    assert isinstance(raised.value.__cause__, KeyError)
    with pytest.raises(RuntimeError, match="failed half-way"), turns.step():
        pass
    with pytest.raises(RuntimeError, match="failed half-way"):
        turns.begin_update()


def test_parts_belong_to_an_update_and_there_is_one_of_each_at_a_time():
    turns = Turns()
    with pytest.raises(AssertionError, match="begin_update"), turns.part_of_update():
        pass
    with turns.step(), pytest.raises(AssertionError, match="one loop"), turns.step():
        pass
    turns.begin_update()
    with pytest.raises(AssertionError, match="one update"):
        turns.begin_update()
