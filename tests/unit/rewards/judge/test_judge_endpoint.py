"""The judge behind a real server that is slow, busy, broken or gone."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from openai_server import OpenAIServer, RuleJudge
from sums import RUBRIC, case

from openrlhf_ext.errors import ConfigError
from openrlhf_ext.rewards.judge.asking import NoVerdict
from openrlhf_ext.rewards.judge.endpoint import Endpoint, EndpointSettings
from openrlhf_ext.rewards.judge.judge import Judge, Verdict
from openrlhf_ext.rewards.judge.settings import JudgeSettings
from openrlhf_ext.rewards.judge.types import NoReply, Question, Reply

KEY = "sk-secret-4711"


@pytest.fixture
def server():
    server = OpenAIServer(RuleJudge().verdict).start()
    yield server
    server.close()


@pytest.fixture
def connect(server):
    """An endpoint of the server, with short waits."""
    opened = []

    def open_one(**settings):
        defaults = {"timeout_s": 5.0, "max_retries": 2, "backoff_s": 0.01, "api_key": KEY, "concurrency": 8}
        opened.append(Endpoint(EndpointSettings(server.url, "judge", **{**defaults, **settings})))
        return opened[-1]

    yield open_one
    for endpoint in opened:
        endpoint.close()


def judged(endpoint, cases, **settings):
    judge = Judge(RUBRIC, JudgeSettings(**settings))
    judge.connect(endpoint)
    verdicts = judge.judge(cases)
    return verdicts, {name.removeprefix("judge/"): metric.value for name, metric in judge.take_report().items()}


def rewards(verdicts):
    return [verdict.reward if isinstance(verdict, Verdict) else None for verdict in verdicts]


RIGHT, WRONG = (3 + 8 / 9) / 4, (1 / 9) / 4


def test_verdicts_in_order_and_what_they_cost(server, connect):
    cases = [case(i, right=i % 3 > 0) for i in range(40)]
    verdicts, counts = judged(connect(), cases, max_new_tokens=33)
    assert rewards(verdicts) == pytest.approx([RIGHT if i % 3 else WRONG for i in range(40)])
    assert counts["asked"] == 40 and counts["prompt_tokens"] == 4000 and counts["answer_tokens"] == 280
    assert counts["parse_failures"] == counts["no_verdict"] == 0 and counts["seconds"] > 0
    assert 1 < server.most_busy <= 8
    body = server.requests[0]
    assert body["model"] == "judge" and body["max_tokens"] == 33 and body["temperature"] == 0
    sent = body["response_format"]
    assert sent["type"] == "json_schema" and sent["json_schema"]["schema"] == RUBRIC.schema()
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("reaction", [429, 500, 503, 408, "drop", "html", (429, {"Retry-After": "0"})], ids=str)
def test_trouble_that_passes_loses_nothing(server, connect, reaction):
    server.reactions.extend([reaction] * 6)
    verdicts, counts = judged(connect(max_retries=6), [case(i, right=i % 2 > 0) for i in range(12)])
    assert rewards(verdicts) == pytest.approx([RIGHT if i % 2 else WRONG for i in range(12)])
    assert len(server.requests) == 18 and counts["no_verdict"] == 0


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_by_all(server, connect, form):
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True)
    server.reactions.append((429, {"Retry-After": "1" if form == "seconds" else soon}))
    endpoint = connect(concurrency=1)
    start = time.monotonic()
    verdicts, _ = judged(endpoint, [case(i) for i in range(3)])
    assert rewards(verdicts) == pytest.approx([RIGHT] * 3)
    assert 0.9 <= time.monotonic() - start < 30 and len(server.requests) == 4


def test_a_server_that_fails_for_ever_is_left_alone(server, connect):
    server.always = 500
    endpoint = connect(concurrency=4, breaker_failures=4, breaker_rest_s=0.5, max_retries=1)
    verdicts, counts = judged(endpoint, [case(i) for i in range(60)])
    assert rewards(verdicts) == [None] * 60
    assert counts["no_reply/crashed"] == counts["no_verdict"] == 60
    assert "HTTP status 500" in verdicts[0].detail and "in a row had no answer" in verdicts[-1].detail
    assert len(server.requests) <= 4 * 2 + 4, "the others failed at once"
    server.always = None
    time.sleep(0.6)
    verdicts, counts = judged(endpoint, [case(1)])
    assert rewards(verdicts) == pytest.approx([RIGHT])
    verdicts, counts = judged(endpoint, [case(i) for i in range(20)])
    assert rewards(verdicts) == pytest.approx([RIGHT] * 20), "one good answer closes the circuit"


def test_one_bad_question_does_not_open_the_circuit(server, connect):
    endpoint = connect(concurrency=1, breaker_failures=2)
    server.reactions.extend([400] * 5)
    verdicts, counts = judged(endpoint, [case(i) for i in range(8)])
    assert rewards(verdicts)[5:] == pytest.approx([RIGHT] * 3)
    assert counts["no_reply/refused"] == 5 and len(server.requests) == 8, "a refusal is not repeated"


def test_slow_answers_are_counted_and_the_rest_kept(server, connect):
    server.reactions.extend([("slow", 60.0)] * 2)
    start = time.monotonic()
    verdicts, counts = judged(connect(timeout_s=2.0, max_retries=0), [case(i) for i in range(10)])
    assert time.monotonic() - start < 30
    assert sorted(v.reason for v in verdicts if isinstance(v, NoVerdict)) == ["timeout", "timeout"]
    assert sum(isinstance(v, Verdict) for v in verdicts) == 8 and counts["no_reply/timeout"] == 2


def test_killed_in_mid_batch_and_back(server, connect):
    """The answers before and after are kept, and all is there when it comes back in time."""
    server.always = ("slow", 0.1)
    endpoint = connect(concurrency=4, max_retries=8, backoff_s=0.05)
    done = []
    thread = threading.Thread(
        target=lambda: done.append(judged(endpoint, [case(i, right=i % 2 > 0) for i in range(24)]))
    )
    thread.start()
    while len(server.requests) < 8:
        time.sleep(0.01)
    server.stop()
    time.sleep(0.5)
    server.start()
    thread.join(30)
    verdicts, counts = done[0]
    assert rewards(verdicts) == pytest.approx([RIGHT if i % 2 else WRONG for i in range(24)])
    assert counts["no_verdict"] == 0 and len(server.requests) >= 24


def test_killed_for_good_keeps_what_was_answered(server, connect):
    server.always = ("slow", 0.1)
    endpoint = connect(concurrency=2, max_retries=1, backoff_s=0.05, breaker_failures=2)
    done = []
    thread = threading.Thread(target=lambda: done.append(judged(endpoint, [case(i) for i in range(20)])))
    thread.start()
    while len(server.requests) < 7:
        time.sleep(0.01)
    server.stop()
    thread.join(30)
    verdicts, counts = done[0]
    kept = sum(isinstance(verdict, Verdict) for verdict in verdicts)
    assert 4 <= kept <= 8 and counts["no_reply/crashed"] == 20 - kept == counts["no_verdict"]


WRONG_REPLIES = {
    "words": "I would give it a 10.",
    "truncated": '{"correct": true, "gra',
    "text for a truth value": '{"correct": "true", "grade": 9}',
    "number for a truth value": '{"correct": 1, "grade": 9}',
    "out of range": '{"correct": true, "grade": 11}',
    "float": '{"correct": true, "grade": 9.0}',
    "text for a number": '{"correct": true, "grade": "9"}',
    "key missing": '{"correct": true}',
    "key too many": '{"correct": true, "grade": 9, "reward": 1}',
    "key twice": '{"correct": false, "correct": true, "grade": 9}',
    "two objects": '{"correct": true, "grade": 9}{"correct": true, "grade": 9}',
    "words behind": '{"correct": true, "grade": 9} as asked',
    "in a fence": '```json\n{"correct": true, "grade": 9}\n```',
    "list": '[{"correct": true, "grade": 9}]',
    "not a number": '{"correct": true, "grade": NaN}',
    "deep": '{"correct": ' + "[" * 50_000 + "]" * 50_000 + ', "grade": 9}',
    "empty": "",
}


@pytest.mark.parametrize("text", WRONG_REPLIES.values(), ids=WRONG_REPLIES)
def test_what_is_no_verdict_is_asked_once_more_and_then_counted(server, connect, text):
    endpoint = connect()
    server.reactions.append(text)
    verdicts, counts = judged(endpoint, [case(2)])
    assert rewards(verdicts) == pytest.approx([RIGHT]), "the second try is a verdict"
    assert counts["parse_failures"] == counts["retried"] == 1 and counts["no_verdict"] == 0
    first, second = server.requests
    assert first["seed"] != second["seed"] and second["temperature"] > 0 and first["messages"] == second["messages"]
    server.reactions.extend([text] * 2)
    [verdict], counts = judged(endpoint, [case(2)])
    assert isinstance(verdict, NoVerdict) and verdict.reason == "parse"
    assert counts["parse_failures"] == 2 and counts["retried"] == counts["no_verdict"] == 1
    assert len(server.requests) == 4, "once more, not twice"


def test_a_completion_without_text(server, connect):
    refusal = {"choices": [{"message": {"content": None, "refusal": "I cannot"}, "finish_reason": "content_filter"}]}
    server.reactions.extend([refusal, {"choices": []}, {"choices": []}, {"choices": []}])
    endpoint = connect(concurrency=1)
    [first, second] = endpoint.reply([Question([{"role": "user", "content": str(i)}]) for i in range(2)])
    assert first == NoReply("refused", f"{server.url}: I cannot")
    assert isinstance(second, NoReply) and second.reason == "crashed" and "no chat completion" in second.detail


def test_too_long_and_the_other_name_of_the_limit(server, connect):
    server.rule = lambda prompt: prompt
    endpoint = connect(concurrency=1)
    server.reactions.append({"status": 400, "error": "This model's maximum context length is 4096 tokens"})
    server.reactions.append({"status": 400, "error": "use 'max_completion_tokens' instead of max_tokens"})
    questions = [Question([{"role": "user", "content": str(i)}], max_new_tokens=5) for i in range(3)]
    first, second, third = endpoint.reply(questions)
    assert isinstance(first, NoReply) and first.reason == "too_long"
    assert second == Reply('"1"', "stop", 100, 7) and third.text == '"2"'
    assert [("max_tokens" in r, "max_completion_tokens" in r) for r in server.requests[1:]] == [
        (True, False), (False, True), (False, True)
    ]  # fmt: skip


def test_the_key_is_never_shown(server, connect, caplog):
    caplog.set_level(logging.DEBUG)
    server.always = 401
    endpoint = connect()
    [verdict], _ = judged(endpoint, [case(1)])
    with pytest.raises(ConfigError) as error:
        endpoint.check()
    assert "HTTP status 401" in verdict.detail and "(hidden)" in verdict.detail
    shown = [verdict.detail, str(error.value), repr(endpoint), endpoint.name, caplog.text]
    shown.append(repr(EndpointSettings(server.url, "judge", KEY)))
    assert not any(KEY in text for text in shown)


def test_the_key_of_the_environment(server, connect, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    connect(api_key=None).check()
    assert server.headers[0]["Authorization"] == "Bearer sk-env"


def test_the_check(server, connect):
    server.rule = lambda prompt: {"ready": True}
    connect().check()
    assert server.requests[0]["response_format"]["json_schema"]["strict"] is True
    server.models = None
    connect().check()
    server.reactions.extend([429, 503])
    connect().check()
    server.reactions.extend([429, 503, 503])
    with pytest.raises(ConfigError, match="HTTP status 503"):
        connect().check()
    server.models = ["alpha", "beta"]
    with pytest.raises(ConfigError, match="does not know the model judge: it has alpha, beta"):
        connect().check()
    server.models = ["judge"]
    server.always = ("slow", 5.0)
    with pytest.raises(ConfigError, match=r"gave no answer within 0\.2 s"):
        connect(timeout_s=0.2).check()
    server.stop()
    with pytest.raises(ConfigError, match="cannot be reached"):
        connect().check()


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "http://", "", "http://host:99999/v1", "http://[::1/v1"]
)
def test_a_url_that_is_none(url):
    with pytest.raises(ConfigError, match="names no host"):
        Endpoint(EndpointSettings(url, "m"))


def test_the_name_has_no_password():
    endpoint = Endpoint(EndpointSettings("http://me:secret@host:8000/v1/", "m"))
    assert endpoint.name == "m at http://host:8000/v1"


def test_from_within_a_running_loop(server, connect):
    async def inside():
        return judged(connect(), [case(1)])[0]

    assert rewards(asyncio.run(inside())) == pytest.approx([RIGHT])


def test_texts_and_json_for_plugins(server, connect):
    server.rule = lambda prompt: {"said": prompt}
    judge = Judge(None)
    judge.connect(connect())
    assert [json.loads(text) for text in judge.ask(["a", [{"role": "user", "content": "b"}]])] == [
        {"said": "a"}, {"said": "b"}
    ]  # fmt: skip
    assert judge.ask(["lone \ud83d surrogate"]) == ['{"said": "lone \\ud83d surrogate"}'], "as JSON escapes it"
    schema = {"type": "object", "properties": {"said": {"type": "string", "enum": ["a", "c"]}}, "required": ["said"]}
    assert judge.ask(["a", "b", "c"], schema) == [{"said": "a"}, None, {"said": "c"}]
    counts = {name: metric.value for name, metric in judge.take_report().items()}
    assert counts["judge/parse_failures"] == 2 and counts["judge/no_verdict"] == 1 and counts["judge/asked"] == 7
    with pytest.raises(ValueError, match="item 1 is neither a text nor a list"):
        judge.ask(["a", 3])
    with pytest.raises(ValueError, match="not a JSON schema"):
        judge.ask(["a"], {"type": "thing"})
    assert judge.take_report() == {}
