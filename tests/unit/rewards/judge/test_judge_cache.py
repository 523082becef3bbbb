"""Verdicts on disk: found by content, shared by threads and processes, and never lost to a broken file."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sums import RUBRIC, TEXT, case

import openrlhf_ext
from openrlhf_ext.errors import ResourceError
from openrlhf_ext.rewards.judge.cache import FILE, VerdictCache, cache_key
from openrlhf_ext.rewards.judge.judge import Judge, Verdict
from openrlhf_ext.rewards.judge.rubric_file import read_rubric
from openrlhf_ext.rewards.judge.settings import JudgeSettings
from openrlhf_ext.rewards.judge.types import Question, Reply


class Grading:
    """A `LanguageModel` whose grades tell which call they come from."""

    def __init__(self, name="grading", text=None):
        self.name = name
        self.text = text
        self.calls = 0

    def reply(self, questions):
        self.calls += 1
        text = self.text or json.dumps({"correct": True, "grade": self.calls})
        return [Reply(text, "stop", 10, 3) for _ in questions]


def judge_with(folder, model=None, rubric=RUBRIC, **settings):
    judge = Judge(rubric, JudgeSettings(**settings), VerdictCache(folder))
    judge.connect(model or Grading())
    return judge


def count(judge, name):
    report = judge.take_report()
    return report[f"judge/{name}"].value


def test_another_run_finds_them(tmp_path):
    first = judge_with(tmp_path / "c").judge([case(1), case(2)])
    judge = judge_with(tmp_path / "c", Grading(text="nobody is asked"))
    assert judge.judge([case(2), case(1)]) == first[::-1]
    report = judge.take_report()
    assert report["judge/cached"].value == 2 and report["judge/asked"].value == report["judge/prompt_tokens"].value == 0


def test_weights_may_change_but_not_what_was_asked(tmp_path):
    """The reply is kept, not the reward: other weights read it anew. Any other change asks again."""
    [old] = judge_with(tmp_path).judge([case(1)])
    heavier = read_rubric(TEXT.replace("weight: 3", "weight: 1"))
    [new] = judge_with(tmp_path, Grading(text="nobody is asked"), heavier).judge([case(1)])
    assert new.criteria == old.criteria and new.reward == pytest.approx(0.5) and old.reward == pytest.approx(0.75)
    others = [
        judge_with(tmp_path, Grading("another")), judge_with(tmp_path, temperature=0.1),
        judge_with(tmp_path, seed=1), judge_with(tmp_path, max_new_tokens=9),
        judge_with(tmp_path, rubric=read_rubric(TEXT.replace("The quality", "Quality"))),
        judge_with(tmp_path, rubric=read_rubric(TEXT.replace("[1, 10]", "[1, 9]"))),
    ]  # fmt: skip
    for judge in others:
        judge.judge([case(1)])
        assert count(judge, "cached") == 0


def test_every_part_of_a_question_is_in_its_key():
    question = Question([{"role": "user", "content": "a"}], {"x": 1, "y": 2}, 5, 0.5, 7)
    others = [
        dataclasses.replace(question, **change)
        for change in (
            {"messages": [{"role": "user", "content": "b"}]}, {"messages": [{"role": "system", "content": "a"}]},
            {"schema": {"y": 2, "x": 1}}, {"schema": None}, {"max_new_tokens": 6}, {"temperature": 0.6}, {"seed": 8},
        )
    ]  # fmt: skip
    keys = {cache_key("m", q) for q in [question, *others]} | {cache_key("n", question)}
    assert len(keys) == 9 and cache_key("m", dataclasses.replace(question)) in keys


def test_what_could_not_be_read_is_not_kept(tmp_path):
    judge_with(tmp_path, Grading(text="rubbish")).judge([case(1)])
    [verdict] = judge_with(tmp_path).judge([case(1)])
    assert isinstance(verdict, Verdict)


@pytest.mark.parametrize(
    "damage", [b"this is no database at all" * 100, b"", None], ids=["other content", "empty", "cut short"]
)
def test_a_broken_file_is_set_aside(tmp_path, caplog, damage):
    before = judge_with(tmp_path)
    before.judge([case(i) for i in range(200)])
    file = tmp_path / FILE
    content = file.read_bytes()
    damaged = content[: len(content) // 2 + 100] if damage is None else damage
    file.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        judge = judge_with(tmp_path)
    [verdict] = judge.judge([case(1)])
    assert isinstance(verdict, Verdict) and count(judge, "cached") == 0
    if damaged:  # nothing was in an empty one
        assert "not a readable database" in caplog.text and f"kept as {FILE}.broken-1" in caplog.text
        assert (tmp_path / f"{FILE}.broken-1").read_bytes() == damaged
    again = judge_with(tmp_path)
    again.judge([case(1)])
    assert count(again, "cached") == 1, "the new one works"


def test_broken_while_it_is_used(tmp_path, caplog):
    judge = judge_with(tmp_path)
    judge.judge([case(i) for i in range(200)])
    file = tmp_path / FILE
    content = file.read_bytes()
    file.write_bytes(content[:16] + b"\xff" * (len(content) - 16))
    verdicts = judge.judge([case(i) for i in range(200)])
    assert all(isinstance(verdict, Verdict) for verdict in verdicts)
    assert (tmp_path / f"{FILE}.broken-1").is_file() and "is kept as" in caplog.text
    again = judge_with(tmp_path)
    again.judge([case(i) for i in range(200)])
    assert count(again, "cached") == 200


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match=r"cannot be used .*: give another folder, or turn it off"):
        VerdictCache(tmp_path / "file" / "cache")


def test_threads_share_one_judge(tmp_path):
    judge = judge_with(tmp_path)
    results = {}

    def work(number):
        results[number] = judge.judge([case(i) for i in range(number, number + 30)])

    threads = [threading.Thread(target=work, args=[number]) for number in range(0, 80, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(v, Verdict) for verdicts in results.values() for v in verdicts) and len(results) == 8
    again = judge_with(tmp_path, Grading(text="nobody is asked"))
    again.judge([case(i) for i in range(100)])
    assert count(again, "cached") == 100


WRITER = """
import sys
from openrlhf_ext.rewards.judge.cache import VerdictCache
from openrlhf_ext.rewards.judge.types import Reply
folder, me = sys.argv[1:]
cache = VerdictCache(folder)
for i in range(40):
    cache.put({b"%s-%d-%d" % (me.encode(), i, j): Reply(f"{me} {i} {j}", "stop", i, j) for j in range(5)})
    assert cache.get([b"%s-%d-0" % (me.encode(), i)])
assert not cache.errors
"""


def test_processes_share_one_file(tmp_path):
    root = str(Path(openrlhf_ext.__file__).parents[1])
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], cwd=root) for name in ("a", "b", "c")
    ]
    assert [writer.wait(100) for writer in writers] == [0, 0, 0]
    keys = [b"%s-%d-%d" % (name, i, j) for name in (b"a", b"b", b"c") for i in range(40) for j in range(5)]
    found = VerdictCache(tmp_path).get(keys)
    assert len(found) == 600 and found[b"b-7-3"] == Reply("b 7 3", "stop", 7, 3)
