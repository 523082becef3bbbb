"""The judge among the sources of rewards, behind a real server."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import pytest
from openai_server import OpenAIServer, RuleJudge
from sums import RUBRIC

from openrlhf_ext.errors import RewardError
from openrlhf_ext.rewards.answer import AnswerError
from openrlhf_ext.rewards.judge.endpoint import Endpoint, EndpointSettings
from openrlhf_ext.rewards.judge.judge import Judge
from openrlhf_ext.rewards.judge.rubric_file import read_rubric
from openrlhf_ext.rewards.judge.settings import JudgeSettings
from openrlhf_ext.rewards.judge.source import JudgeSource, conversation
from openrlhf_ext.rewards.judge.types import Reply
from openrlhf_ext.rewards.load import RewardSettings, load_reward
from openrlhf_ext.rewards.process import RewardBatch
from openrlhf_ext.types import Prompt, Rollout, ScoreFailure

RIGHT, WRONG = (3 + 8 / 9) / 4, (1 / 9) / 4


@pytest.fixture
def server():
    server = OpenAIServer(RuleJudge().verdict).start()
    yield server
    server.close()


@pytest.fixture
def source(server):
    endpoint = Endpoint(EndpointSettings(server.url, "judge", max_retries=0, concurrency=1))
    yield JudgeSource(Judge(RUBRIC), "judge with sums.yaml", endpoint)
    endpoint.close()


def rollout(prompt, sample, text, role=""):
    return Rollout(prompt.id, sample, (1, 2), (False, True), (0.0, 0.0), text, "stop", (0, 0), role=role)


def groups(n=3):
    """Of each prompt a right answer, a wrong one and none."""
    made = []
    for i in range(n):
        prompt = Prompt(f"p{i}", (1,), f"<chat>What is {i} + {i}?</chat>", str(2 * i),
                        messages=[{"role": "user", "content": f"What is {i} + {i}?"}])  # fmt: skip
        texts = [f"Answer: {2 * i}", f"Answer: {2 * i + 1}", "I do not know."]
        made.append((prompt, [rollout(prompt, sample, text) for sample, text in enumerate(texts)]))
    return made


def test_scores_with_parts_notes_and_costs(source, server):
    with load_reward([], RewardSettings(), roles=[source]) as fn:
        source.connect(SimpleNamespace())  # an endpoint needs no role
        scores = fn.score(groups())
        report = fn.take_report()
    assert [[s.value for s in group] for group in scores] == [pytest.approx([RIGHT, WRONG, WRONG])] * 3
    score = scores[1][0]
    assert score.parts == {"judge": score.value, "judge/correct": 1.0, "judge/grade": 9.0, "judge/cut": 0.0}
    assert json.loads(score.notes["judge"]) == {
        "reward": score.value, "criteria": {"correct": True, "grade": 9}, "samples": [{"correct": True, "grade": 9}]
    }  # fmt: skip
    assert report["judge/asked"].value == 9 and report["judge/answer_tokens"].value == 63
    assert not any("<chat>" in json.dumps(request) for request in server.requests), "the judge reads the conversation"


def test_a_lost_verdict_fails_its_own_group(source, server):
    server.reactions.extend([None] * 4 + [500])
    settings = RewardSettings(on_error="drop_group", backoff_s=0.01)
    with load_reward([], settings, roles=[source]) as fn:
        first, second, third = fn.score(groups())
        report = fn.take_report()
    assert [s.value for s in first] == [s.value for s in third] == pytest.approx([RIGHT, WRONG, WRONG])
    assert isinstance(second, ScoreFailure) and second.reason == "crashed"
    assert "judge: no verdict on 1 of 9 responses (crashed 1;" in second.detail and "HTTP status 500" in second.detail
    assert report["judge/no_verdict"].value == report["judge/no_reply/crashed"].value == 1
    assert len(server.requests) == 9, "nothing is asked again by the caller"


def test_a_lost_verdict_ends_the_run_where_that_is_asked_for(source, server):
    server.reactions.extend(["nonsense", *[None] * 8, "nonsense"])
    said = r"judge with sums\.yaml failed \(wrong_type: no verdict on 1 of 9 .*not one JSON"
    with load_reward([], RewardSettings(on_error="abort"), roles=[source]) as fn:
        with pytest.raises(RewardError, match=said):
            fn.score(groups())
    assert len(server.requests) == 10


def test_a_dead_server_fails_every_group_and_counts(source, server):
    server.stop()
    settings = RewardSettings(on_error="drop_group", backoff_s=0.01)
    with load_reward([], settings, roles=[source]) as fn:
        results = fn.score(groups())
        report = fn.take_report()
        assert all(isinstance(result, ScoreFailure) for result in results)
        assert report["judge/no_verdict"].value == 9
        server.start()
    with pytest.raises(AnswerError) as error:
        source.ask(RewardBatch(["ab"], ["a"], ["1"], {}), 1.0)
    assert error.value.final and math.isnan(error.value.answer.rewards[0])


def test_texts_without_rollouts(source):
    """A request over HTTP: responses are what queries have behind their prompts."""
    batch = RewardBatch(["2 + 2?\nAnswer: 4", "Answer: 5"], ["2 + 2?\n", "another"], ["4", "4"], {"c": [1, 2]})
    answer = source.ask(batch, 1.0)
    assert answer.rewards == pytest.approx([RIGHT, WRONG]) and answer.logs["correct"] == [1.0, 0.0]


def test_a_role_is_connected():
    class Engine:
        name = "engine"

        def reply(self, questions):
            return [Reply('{"correct": true, "grade": 10}', "stop", 1, 1) for _ in questions]

    source = JudgeSource(Judge(RUBRIC), "judge")
    source.connect(SimpleNamespace(judge=Engine()))
    assert source.ask(RewardBatch(["a"], ["a"], ["1"], {}), 1.0).rewards == [1.0]


PAIRS = read_rubric("""
instructions: '{{ prompt }} {{ response }}'
criteria: [{name: longer, description: d, scale: boolean}]
""")


def longer(prompt):
    """The longer of two."""
    _, shown_a, shown_b = re.split("Response [AB]:", prompt)
    a, b = (shown.split("</data")[0].split(">")[1] for shown in (shown_a, shown_b))
    return {"longer": "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"}


def test_pairs_are_of_one_prompt_and_one_role(server):
    server.rule = longer
    endpoint = Endpoint(EndpointSettings(server.url, "judge"))
    source = JudgeSource(Judge(PAIRS, JudgeSettings(mode="pairwise")), "judge", endpoint)
    one, two = Prompt("1", (1,), "same text"), Prompt("2", (1,), "same text")
    played = [(one, rollout(one, 0, "x", "a")), (one, rollout(one, 1, "xxxx", "b"))]
    played += [(one, rollout(one, 2, "xx", "a")), (one, rollout(one, 3, "xxx", "b"))]
    played += [(two, rollout(two, 0, "xxxxx")), (two, rollout(two, 1, "xxxxxx"))]
    texts = [prompt.text for prompt, _ in played]
    batch = RewardBatch(texts, texts, [None] * 6, {}, played)
    assert source.ask(batch, 1.0).rewards == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    assert len(server.requests) == 3 * 2
    texts_only = RewardBatch(["a", "aa", "b", "bbb"], ["", "", "b", "b"], [None] * 4, {})
    assert source.ask(texts_only, 1.0).rewards == [0.0, 1.0, 0.0, 1.0]
    endpoint.close()


def test_rows_are_checked_before_anything_runs(source):
    rubric = read_rubric(
        "instructions: '{{ columns.kind }} {{ response }}'\ncriteria: [{name: a, description: d, scale: boolean}]",
        "r.yaml",
    )
    checked = JudgeSource(Judge(rubric), "judge")
    checked.check_rows([Prompt("1", (1,), "t", meta={"kind": "x"})])
    with pytest.raises(RewardError, match=r"rubric r\.yaml: .* prompt 2: .*'kind'"):
        checked.check_rows([Prompt("1", (1,), "t", meta={"kind": "x"}), Prompt("2", (1,), "t")])


def test_instructions_are_checked_in_the_mode_that_shows_them():
    criteria = "criteria: [{name: good, description: It is good., scale: boolean}]"
    text = f"instructions: 'The end: {{{{ response | trim }}}}'\n{criteria}"
    for mode in ("pointwise", "pairwise"):
        checked = JudgeSource(Judge(read_rubric(text, "r.yaml"), JudgeSettings(mode)), "judge")
        if mode == "pointwise":
            checked.check_rows([Prompt("1", (1,), "t")])
        else:
            with pytest.raises(RewardError, match="no filter or test reads it"):
                checked.check_rows([Prompt("1", (1,), "t")])


def test_conversations():
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    assert conversation(Prompt("1", (1,), "raw")) == "raw"
    assert conversation(Prompt("1", (1,), "raw", messages=turns[1:])) == "Hi"
    assert conversation(Prompt("1", (1,), "raw", messages=turns)) == "system: Be short.\n\nuser: Hi"
