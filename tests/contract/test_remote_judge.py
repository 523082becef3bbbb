"""The judge over engines on Ray, of which some die: who is asked again, how often, and what is counted.

The engines here are processes that answer at once, so that it can be said when they die.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from openrlhf_ext.cluster.judge import RESTARTS, JudgeEngines, RemoteJudge
from openrlhf_ext.cluster.phases import Phases, Sleeper
from openrlhf_ext.rewards.judge.types import NoReply, Question, Reply

pytestmark = pytest.mark.slow


class Echo:
    """Answers with the question and notes whom it was asked; "die once" kills its process once, "die" each time,
    "fail once" raises as an engine does that has lost a process of its own.
    """

    def __init__(self, folder: str, place: int, broken: bool = False) -> None:
        if broken:
            raise RuntimeError("no memory is left for this engine")
        self.folder, self.place = Path(folder), place

    def reply(self, questions: Sequence[Question], progress: Any = None) -> list[Reply | NoReply]:
        for question in questions:
            text = question.messages[0]["content"]
            with (self.folder / "asked").open("a") as asked:
                asked.write(f"{self.place} {text}\n")
            once = self.folder / "died"
            if text == "fail once" and not once.exists():
                once.touch()
                raise RuntimeError("EngineDeadError")
            if text == "die" or (text == "die once" and not once.exists()):
                once.touch()
                os._exit(1)
        return [Reply(question.messages[0]["content"].upper(), "stop", 1, 1) for question in questions]

    def take_peaks(self) -> dict[str, Any]:
        return {}

    def sleep(self) -> None: ...

    def wake(self) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    path = os.pathsep.join(str(Path(__file__).parents[i]) for i in (0, 2))
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )  # fmt: skip
    yield
    ray.shutdown()


class Started:
    """The engines' places in the order in which they were started; `broken` ones fail from their second start on."""

    def __init__(self, folder: Path, broken: Sequence[int] = ()) -> None:
        self.folder, self.broken = folder, broken
        self.places: list[int] = []

    def __call__(self, place: int) -> Any:
        fails = place in self.places and place in self.broken
        self.places.append(place)
        return ray.remote(Echo).options(num_cpus=0).remote(str(self.folder), place, fails)

    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().splitlines()


def questions(*texts: str) -> list[Question]:
    return [Question([{"role": "user", "content": text}]) for text in texts]


def texts(replies: Sequence[Reply | NoReply]) -> list[str]:
    return [reply.text if isinstance(reply, Reply) else reply.reason for reply in replies]


def test_answers_are_in_order_and_everyone_has_a_share(tmp_path: Path):
    started = Started(tmp_path)
    entered: list[str] = []
    phases = Phases(
        {"judge": Sleeper(frozenset({"judge"}), lambda: None, lambda _: entered.append("judge"))}, {"judge"}
    )
    judge = RemoteJudge("echo", JudgeEngines(started, 2), phases)
    assert texts(judge.reply(questions("a", "b", "c", "d", "e"))) == ["A", "B", "C", "D", "E"]
    assert entered == ["judge"], "it was awake before it was asked"
    assert sorted(started.asked()) == ["0 a", "0 c", "0 e", "1 b", "1 d"]
    assert judge.take_counts() == {} and started.places == [0, 1]
    assert judge.reply([]) == []


@pytest.mark.parametrize("trouble", ["die once", "fail once"])
def test_an_engine_that_dies_is_replaced_and_its_questions_alone_are_asked_again(tmp_path: Path, trouble: str):
    started = Started(tmp_path)
    judge = RemoteJudge("echo", JudgeEngines(started, 2), Phases({}))
    asked_for = ["a", "b", "c", trouble, "e", "f"]
    assert texts(judge.reply(questions(*asked_for))) == [text.upper() for text in asked_for]
    asked = [line.split(" ", 1)[1] for line in started.asked()]
    assert {text: asked.count(text) for text in ("a", "c", "e")} == {"a": 1, "c": 1, "e": 1}
    assert asked.count("b") == asked.count(trouble) == 2
    assert judge.take_counts() == {"restarts": 1} and judge.take_counts() == {}
    assert started.places == [0, 1, 1]
    assert texts(judge.reply(questions("g", "h"))) == ["G", "H"]


def test_what_kills_every_engine_gets_no_reply_and_the_others_keep_theirs(tmp_path: Path):
    started = Started(tmp_path)
    judge = RemoteJudge("echo", JudgeEngines(started, 2), Phases({}))
    (first, second, third) = judge.reply(questions("a", "die", "c"))
    assert texts([first, third]) == ["A", "C"]
    assert isinstance(second, NoReply) and second.reason == "crashed"
    assert judge.take_counts() == {"restarts": RESTARTS}
    assert texts(judge.reply(questions("g", "h"))) == ["G", "H"], "the next call starts what is dead"


def test_the_others_answer_for_one_that_cannot_be_started_again(tmp_path: Path):
    started = Started(tmp_path, broken=[1])
    judge = RemoteJudge("echo", JudgeEngines(started, 2), Phases({}))
    assert texts(judge.reply(questions("a", "die once", "c", "d"))) == ["A", "DIE ONCE", "C", "D"]
    assert [line for line in started.asked() if line.startswith("0")] == ["0 a", "0 c", "0 die once", "0 d"]


def test_no_engine_at_all_is_no_reply(tmp_path: Path):
    judge = RemoteJudge("echo", JudgeEngines(Started(tmp_path, broken=[0]), 1), Phases({}))
    assert texts(judge.reply(questions("die", "b"))) == ["crashed", "crashed"]
