"""Reward files that ask the judge: over the pipe to the trainer's process and back."""

from __future__ import annotations

import textwrap
import time

import pytest

from openrlhf_ext.errors import RewardError
from openrlhf_ext.rewards.judge.judge import Judge
from openrlhf_ext.rewards.judge.types import NoReply, Question, Reply
from openrlhf_ext.rewards.load import RewardSettings, load_reward
from openrlhf_ext.types import Metric, Prompt, Rollout, ScoreFailure


class Upper:
    """A LanguageModel that answers in capitals, as JSON where it is asked for a schema; `calls` are its calls."""

    name = "upper"

    def __init__(self, takes_s: float = 0.0) -> None:
        self.calls: list[list[Question]] = []
        self.takes_s = takes_s

    def reply(self, questions):
        self.calls.append(list(questions))
        time.sleep(self.takes_s)
        return [self._one(question) for question in questions]

    def _one(self, question: Question) -> Reply | NoReply:
        text = question.messages[-1]["content"]
        if "dead" in text:
            return NoReply("crashed", "it is dead")
        answer = f'{{"grade": {len(text)}}}' if question.schema else text.upper()
        return Reply(answer, "stop", 3, 2)


SCHEMA = {"type": "object", "properties": {"grade": {"type": "integer"}}, "required": ["grade"]}


def groups(*texts: str):
    prompts = [Prompt(text, (1,), "q: ", text.upper()) for text in texts]
    return [(p, [Rollout(p.id, 0, (1, 2), (False, True), (0.0, 0.0), p.id, "stop", (0, 0))]) for p in prompts]


@pytest.fixture
def opened(tmp_path):
    """A reward file with a judge over `model`, or without one."""
    rewards = []

    def open_reward(source: str, model: Upper | None, **settings):
        path = tmp_path / "reward.py"
        path.write_text(textwrap.dedent(source))
        judge = None if model is None else Judge(None)
        settings = RewardSettings(**{"max_retries": 0, "timeout_s": 20.0, **settings})
        reward = load_reward([str(path)], settings, judge=judge)
        rewards.append(reward)
        reward.probe(prompts=[prompt for prompt, _ in groups("x", "y")])
        if judge is not None:
            judge.connect(model)  # as a run does: after the trial calls, when the roles are there
        return reward

    yield open_reward
    for reward in rewards:
        reward.close()


def values(scores) -> list[float]:
    return [score.value for [score] in scores]


def test_a_function_asks_and_gets_texts_and_json(opened):
    model = Upper()
    reward = opened(
        f"""
        def reward_func(queries, prompts, labels, judge=None, **kwargs):
            texts = judge.ask([q[len(p):] for q, p in zip(queries, prompts)])
            grades = judge.ask([[{{"role": "user", "content": t}}] for t in texts], {SCHEMA})
            good = [t == l for t, l in zip(texts, labels)]
            return {{"rewards": [float(g) for g in good], "extra_logs": {{"grade": [g["grade"] for g in grades]}}}}
        """,
        model,
    )
    assert not model.calls  # the trial call waits for the judge
    [[first], [second]] = reward.score(groups("ab", "abc"))
    assert (first.value, second.value) == (1.0, 1.0)
    assert (first.parts["reward/grade"], second.parts["reward/grade"]) == (2.0, 3.0)
    report = reward.take_report()
    assert report["judge/asked"] == Metric(8.0, reduction="sum")  # the trial's two samples, then two, each twice
    assert report["judge/prompt_tokens"].value == 24.0


@pytest.mark.parametrize(
    ("signature", "is_there", "expected"),
    [
        ("queries, prompts, labels, judge", False, "None"),
        ("queries, prompts, labels, judge=5", False, "None"),
        ("queries, prompts, labels, **kwargs", False, "absent"),
        ("queries, prompts, labels", False, "absent"),
        ("queries, prompts, labels, *, judge=None", True, "Judge"),
        ("queries, prompts, labels, **kwargs", True, "Judge"),
        ("queries, prompts, labels", True, "absent"),
    ],
)
def test_who_gets_the_judge(opened, signature, is_there, expected):
    reward = opened(
        f"""
        def reward_func({signature}):
            given = {{**locals(), **locals().get("kwargs", {{}})}}
            judge = given.get("judge", "absent")
            found = judge if judge == "absent" else "None" if judge is None else type(judge).__name__
            return [float(found == {expected!r})] * len(queries)
        """,
        Upper() if is_there else None,
    )
    assert values(reward.score(groups("a"))) == [1.0]


def test_concurrent_questions_of_an_async_function_are_one_call(opened):
    model = Upper()
    reward = opened(
        """
        import asyncio
        async def reward_func(queries, prompts, labels, judge):
            answers = await asyncio.gather(*(judge.ask_async([q]) for q in queries))
            return [float(a == [q.upper()]) for q, a in zip(queries, answers)]
        """,
        model,
    )
    assert values(reward.score(groups(*"abcdefgh"))) == [1.0] * 8
    assert sum(len(call) for call in model.calls) == 8 + 2
    assert max(len(call) for call in model.calls) > 1


def test_threads_of_user_code_get_their_own_answers(opened):
    reward = opened(
        """
        from concurrent.futures import ThreadPoolExecutor
        def reward_func(queries, prompts, labels, judge):
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda q: judge.ask([q])[0], queries))
            return [float(a == q.upper()) for q, a in zip(queries, answers)]
        """,
        Upper(0.02),
    )
    assert values(reward.score(groups(*"abcdefghijklmnop"))) == [1.0] * 16


def test_the_judges_time_is_not_the_functions(opened):
    source = """
        import time
        def reward_func(queries, prompts, labels, judge):
            judge.ask(queries)
            time.sleep({slow})
            return [1.0] * len(queries)
        """
    reward = opened(source.format(slow=0), Upper(1.5), timeout_s=1.0)
    assert values(reward.score(groups("a"))) == [1.0]  # the trial is made now, and so are two calls of 1.5 s
    reward = opened(
        source.format(slow='5 if queries[0] == "q: a" else 0'), Upper(0.2), timeout_s=1.0, on_error="drop_group"
    )
    [failure] = reward.score(groups("a"))
    assert isinstance(failure, ScoreFailure) and failure.reason == "timeout"
    assert values(reward.score(groups("b"))) == [1.0]


def test_no_answer_is_none(opened):
    reward = opened(
        """
        def reward_func(queries, prompts, labels, judge):
            return [float(a is None) for a in judge.ask(queries)]
        """,
        Upper(),
    )
    assert values(reward.score(groups("a", "dead", "b"))) == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("judge.ask('one text')", "takes a list of texts"),
        ("judge.ask([7])", "item 0 is neither a text"),
        ("judge.ask(queries, {'type': 'nothing'})", "schema"),
        ("judge.ask(queries, tempo=1)", "no argument tempo"),
    ],
)
def test_a_wrong_question_is_the_functions_error(opened, call, said):
    with pytest.raises(RewardError, match=said):  # the trial call, now or when the judge is there
        opened(f"def reward_func(queries, prompts, labels, judge):\n    return {call}\n", Upper()).score(groups("a"))


def test_what_is_wrong_after_the_answer_is_said_before_the_first_batch(opened):
    reward = opened(
        "def reward_func(queries, prompts, labels, judge):\n    return judge.ask(queries)\n",
        Upper(),
        on_error="drop_group",
    )
    with pytest.raises(RewardError, match="failed its trial call"):
        reward.score(groups("a"))
