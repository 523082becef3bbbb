from __future__ import annotations

import io
import threading
import time

import pytest
from rich.console import Console

from openrlhf_ext.track.phases import PhaseClock
from openrlhf_ext.track.progress import StepProgress, waiting


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=200, color_system=None), out


def test_without_a_terminal_every_step_is_one_plain_line() -> None:
    sink, out = console(terminal=False)
    line = StepProgress(10, {"reward": "reward", "policy/kl": "kl"}, sink)
    line.update(1, {"reward": 0.5, "seconds/generate": 1.25, "seconds/update": 0.5, "other": 3.0})
    line.update(2, {"reward": 0.75, "policy/kl": 0.01})
    line.note("step 2: [something]")
    line.close()
    assert out.getvalue().splitlines() == [
        "step 1/10  reward 0.5  [generate 1.2s update 0.5s]",
        "step 2/10  reward 0.75  kl 0.01",
        "step 2: [something]",
    ]


def test_on_a_terminal_the_line_is_live() -> None:
    sink, out = console(terminal=True)
    line = StepProgress(4, {"reward": "reward"}, sink)
    line.update(4, {"reward": 0.125, "seconds/generate": 2.0})
    line.close()
    assert "4/4" in out.getvalue()
    assert "reward 0.125" in out.getvalue()
    assert "[generate 2.0s]" in out.getvalue()


def test_a_long_wait_says_what_it_waits_for_and_a_short_one_says_nothing() -> None:
    sink, out = console(terminal=False)
    with waiting("the engine", interval=0.05, console=sink):
        deadline = time.monotonic() + 5.0
        while "waiting for the engine" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "waiting for the engine (0 s)" in out.getvalue()
    sink, out = console(terminal=False)
    with waiting("the engine", interval=5.0, console=sink):
        pass
    assert out.getvalue() == ""


def test_an_error_passes_through_a_wait() -> None:
    with pytest.raises(ValueError, match="gone"), waiting("it", console=console(False)[0]):
        raise ValueError("gone")


def test_phases_add_up_and_tokens_per_second_are_of_their_phase() -> None:
    ticks = iter([0.0, 2.0, 2.0, 2.5, 10.0, 11.0])
    clock = PhaseClock(now=lambda: next(ticks))
    for phase in ("generate", "score", "generate"):
        with clock(phase):
            pass
    report = clock.take({"generate": 600.0, "update": 5.0})
    assert {name: metric.value for name, metric in report.items()} == {
        "seconds/generate": 3.0,
        "seconds/score": 0.5,
        "seconds/step": 3.5,
        "tokens_per_second/generate": 200.0,
    }
    assert [(name, metric.value) for name, metric in clock.take().items()] == [("seconds/step", 0.0)]


def test_tokens_per_second_of_two_steps_are_their_tokens_over_their_seconds() -> None:
    ticks = iter([0.0, 1.0, 0.0, 3.0])
    clock = PhaseClock(now=lambda: next(ticks))
    reports = []
    for tokens in (100.0, 100.0):
        with clock("update"):
            pass
        reports.append(clock.take({"update": tokens})["tokens_per_second/update"])
    assert reports[0].merge(reports[1]).value == 50.0


def test_phases_of_another_thread_go_on_beside_the_step_and_are_not_in_its_sum() -> None:
    clock = PhaseClock()
    began, ends = threading.Event(), threading.Event()

    def generate() -> None:
        with clock("generate"):
            began.set()
            clock.count(30.0)
            ends.wait(10.0)
            clock.count(12.0)

    thread = threading.Thread(target=generate)
    thread.start()
    assert began.wait(10.0)
    with clock("update"):
        pass
    first = clock.take()
    assert first.keys() == {"seconds/update", "seconds/step"}  # tokens wait for their seconds
    ends.set()
    thread.join()
    second = clock.take()
    assert second["seconds/generate"].value > 0.0
    assert second["tokens_per_second/generate"].total == 42.0
    assert second["seconds/step"].value == 0.0
    with pytest.raises(AssertionError, match="inside a phase"):
        clock.count(1.0)


def test_a_phase_inside_a_phase_is_a_mistake() -> None:
    clock = PhaseClock()
    with pytest.raises(AssertionError, match="phase score inside phase generate"), clock("generate"), clock("score"):
        pass


def test_lines_may_be_thinned_but_the_last_one_stays() -> None:
    sink, out = console(terminal=False)
    line = StepProgress(7, {"reward": "reward"}, sink, every=3)
    for step in range(1, 8):
        line.update(step, {"reward": 1.0})
    assert [text.split()[1] for text in out.getvalue().splitlines()] == ["3/7", "6/7", "7/7"]
