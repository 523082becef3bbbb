"""The process of an agent file: time limits, a loop that stands still, deaths, and files that are no agents."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from played import asked, play, write

import openrlhf_ext
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.rollout.agents.player import EpisodePlayer
from openrlhf_ext.rollout.agents.process import AgentProfile, look_at
from openrlhf_ext.types import Outcome, Rollout, ScoreFailure

ROOT = str(Path(openrlhf_ext.__file__).parent.parent)
ENGINE = """
import sys, time
from openrlhf_ext.rollout.agents.process import AgentProcess
process = AgentProcess(sys.argv[1], "", 60.0)
assert process.profile.contract == "own"
process.send({"kind": "play", "episode": 1, "task": {"prompt": "?", "seed": 0}, "limits": {}})
time.sleep(600)
"""
SPEAK = """
        talk = talks[""]
        talk.tell(task.prompt)
        await talk.sample()
"""


def agent(folder: Path, *lines: str) -> str:
    body = "".join(f"        {line}\n" for line in lines)
    return write(folder, f"class It(Agent):\n    async def play(self, task, talks):{SPEAK}{body}")


def reasons(rollouts: list[Rollout]) -> list[str | None]:
    return [rollout.outcome.reason if isinstance(rollout.outcome, ScoreFailure) else None for rollout in rollouts]


def pid(rollout: Rollout) -> int:
    assert isinstance(rollout.outcome, Outcome)
    return rollout.outcome.info["pid"]


def test_an_episode_that_takes_too_long_fails_alone(tmp_path: Path):
    slow = agent(tmp_path, "if task.label == 1: await asyncio.sleep(600)", "return {'pid': os.getpid()}")
    start = time.monotonic()
    played = play(slow, asked(), timeout_s=1.0)
    assert 1.0 < time.monotonic() - start < 30
    assert reasons(played.rollouts) == [None, None, "timeout", "timeout", None, None]
    assert len({pid(played.rollouts[i]) for i in (0, 1, 4, 5)}) == 1, "the process lives on"
    late = played.rollouts[2]
    assert late.response_length > 0, "what was said is kept with the failure"
    assert "--agent.timeout_s" in late.outcome.detail  # type: ignore[union-attr]


def test_waiting_for_the_policy_takes_no_time(tmp_path: Path):
    talkative = agent(tmp_path, *["talk.tell('.')", "await talk.sample()"] * 3)
    start = time.monotonic()
    played = play(talkative, asked(), step_s=0.12, timeout_s=1.0)
    assert time.monotonic() - start > 1.5, "longer than an episode may take"
    assert reasons(played.rollouts) == [None] * 6


def test_an_agent_that_ignores_its_cancellation_is_left_behind(tmp_path: Path):
    stubborn = agent(
        tmp_path,
        "if task.label == 1:",
        "    try: await asyncio.sleep(600)",
        "    except asyncio.CancelledError: pass",
        "    talk.tell('x')",
        "    await talk.sample()",  # the engine has no more turns for it
        "return {'pid': os.getpid()}",
    )
    played = play(stubborn, asked(), timeout_s=1.0, concurrent=4)
    assert reasons(played.rollouts) == [None, None, "timeout", "timeout", None, None]
    assert len({pid(played.rollouts[i]) for i in (0, 1, 4, 5)}) == 1
    assert len(played.sampler.asked) == 6


@pytest.mark.parametrize(
    ("line", "reason", "words"),
    [
        ("time.sleep(600)", "timeout", "--agent.timeout_s"),
        ("os._exit(3)", "crashed", "exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "crashed", "SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", "timeout", "--agent.timeout_s"),
    ],
)
def test_a_process_that_dies_or_stands_still_is_replaced(tmp_path: Path, line: str, reason: str, words: str):
    path = agent(tmp_path, f"if task.label == 1 and task.sample == 0: {line}", "return {'pid': os.getpid()}")
    start = time.monotonic()
    played = play(path, asked(prompts=4), concurrent=2, timeout_s=1.5)
    assert time.monotonic() - start < 40, "nothing hangs"
    found = reasons(played.rollouts)
    assert found[2] == reason and words in played.rollouts[2].outcome.detail  # type: ignore[union-attr]
    assert found[:2] == [None, None] and found[5:] == [None] * 3, "those before and after it are whole"
    assert found[3] in (None, reason) and found[4] in (None, reason), "those beside it may be lost with it"
    pids = {pid(rollout) for rollout in played.rollouts if isinstance(rollout.outcome, Outcome)}
    assert len(pids) == 2
    assert not any(psutil.pid_exists(one) for one in pids)


def test_a_full_pipe_stops_nobody(tmp_path: Path):
    """Far more is sent than a pipe holds, to a process that reads nothing."""
    path = agent(tmp_path, "os.kill(os.getpid(), signal.SIGSTOP)")
    requests = asked(prompts=40, samples=1)
    for request in requests:
        object.__setattr__(request.prompt, "label", "x" * 100_000)
    start = time.monotonic()
    assert set(reasons(play(path, requests, timeout_s=1.0).rollouts)) == {"timeout"}
    assert time.monotonic() - start < 30


def test_an_interrupted_round_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from played import Babbler

    def interrupted(self: Babbler) -> list:
        raise KeyboardInterrupt

    path = agent(tmp_path)
    player_of = []
    original = EpisodePlayer.play
    monkeypatch.setattr(EpisodePlayer, "play", lambda self, *given: player_of.append(self) or original(self, *given))
    with monkeypatch.context() as patch:
        patch.setattr(Babbler, "step_turns", interrupted)
        with pytest.raises(KeyboardInterrupt):
            play(path, asked())
    (player,) = player_of
    assert player.sampler.idle  # type: ignore[attr-defined]
    assert reasons(player.play(asked(), None)) == [None] * 6, "it plays again"
    player.close()


def test_a_process_ends_with_its_engine_and_takes_what_it_started_along(tmp_path: Path):
    marker = tmp_path / "pids"
    body = f"""
class It(Agent):
    async def play(self, task, talks):
        import subprocess, sys
        tool = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(marker)!r}, "w").write(f"{{os.getpid()}} {{tool.pid}}")
        time.sleep(600)
"""
    engine = subprocess.Popen(
        [sys.executable, "-c", ENGINE, write(tmp_path, body)], env=os.environ | {"PYTHONPATH": ROOT}
    )
    _wait_for(lambda: marker.exists() and len(marker.read_text().split()) == 2)
    engine.kill()
    engine.wait()
    pids = [int(one) for one in marker.read_text().split()]
    _wait_for(lambda: not any(_lives(one) for one in pids))


def _lives(one: int) -> bool:
    try:
        return psutil.Process(one).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_for(holds, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


GOOD = "class A(Agent):\n    async def play(self, task, talks):\n        pass\n"
BAD_FILES = {
    "class A(Agent:\n": "syntax error in .*, line 3",
    "import no_such_module\n": "cannot be imported:(.|\n)*No module named 'no_such_module'",
    "1 / 0\n": "ZeroDivisionError",
    "x = 1\n": r"0 agents that can be played \(none\); expected one class that inherits",
    "class A(Agent):\n    async def play(self, task): pass\n    async def other(self): pass\nclass B(A): pass\n"
    "class C(A): pass\n": r"2 agents that can be played \(B, C\)",
    "class A(Agent):\n    pass\n": r"0 agents that can be played \(A\)",
    "class A(Agent):\n    def play(self, task, talks): pass\n": "must be a coroutine",
    GOOD + "    roles = ('a', 'a')\n": "roles of A",
    GOOD + "    roles = ()\n": "roles of A",
    "os._exit(7)\n": "its import ended the process .exit code 7.",
    "time.sleep(600)\n": "did not end within 1 s",
    "class AgentExecutor:\n    def __init__(self, needed): pass\n": "needed",
    "class AgentExecutor:\n    pass\n": "no coroutine `execute`",
}


@pytest.mark.parametrize("body", BAD_FILES)
def test_a_file_that_is_no_agent_is_told_in_a_sentence(tmp_path: Path, body: str):
    with pytest.raises(ConfigError, match=BAD_FILES[body]) as raised:
        look_at(write(tmp_path, body), 1.0 if "sleep" in body else 60.0)
    assert str(raised.value).startswith("--train.agent_func_path")


def test_a_path_that_names_no_file(tmp_path: Path):
    write(tmp_path, GOOD, "my_agent.py")
    with pytest.raises(ConfigError, match=r"did you mean .*my_agent\.py"):
        look_at(str(tmp_path / "my_agnet.py"), 60.0)
    with pytest.raises(ConfigError, match="no Python file"):
        look_at(str(tmp_path), 60.0)


def test_what_a_file_holds(tmp_path: Path):
    base = "class Base(Agent):\n    async def play(self, task, talks): pass\n"
    game = base + "class Game(Base):\n    roles = ('left', 'right')\n"
    assert look_at(write(tmp_path, game), 60.0) == AgentProfile("own", ("left", "right"))
    write(tmp_path, "NAME = 'left'\n", "neighbour.py", head="")
    near = "from neighbour import NAME\n" + game.replace("'left'", "NAME")
    assert look_at(write(tmp_path, near), 60.0) == AgentProfile("own", ("left", "right"))
    theirs = "from openrlhf.utils.agent import AgentExecutorBase\nclass AgentExecutor(AgentExecutorBase):\n"
    theirs += (
        "    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine): pass\n"
    )
    assert look_at(write(tmp_path, theirs, head=""), 60.0) == AgentProfile("openrlhf", ("",))
