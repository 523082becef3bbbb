"""The wire: what is taken and answered, and one sentence with the right status for everything else."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import ClientConnectorError, ClientSession

from openrlhf_ext.errors import ResourceError
from openrlhf_ext.rewards.answer import Answer, read_answer
from openrlhf_ext.rewards.line import Line, Scored
from openrlhf_ext.rewards.server import (
    Limits,
    Refused,
    RewardServer,
    answer,
    listen,
    queries_of,
    reached_from_elsewhere,
    response_of,
    serve,
    url_of,
)

ABOUT = {"model": "m", "dtype": "fp32", "device": "cpu", "max_len": 8}
ROOMY = Limits(request=1_000_000, waiting=10_000_000)


def lengths(texts):
    return [Scored(float(len(text)), len(text) > 8, len(text)) for text in texts]


def asked(scenario: Callable[[ClientSession], Awaitable[None]], score=lengths, limits=ROOMY):
    """Run `scenario` with a client of the real server over `score`."""

    async def both():
        line = Line(score, print)
        work = asyncio.create_task(line.work())
        listener = listen("127.0.0.1", 0)
        runner = await RewardServer(line, limits, ABOUT).start(listener)
        try:
            async with ClientSession(url_of(listener).removesuffix("/get_reward")) as client:
                await asyncio.wait_for(scenario(client), 20)
        finally:
            work.cancel()
            await runner.cleanup()

    asyncio.run(both())


async def refused(client, status, sentence, **request):
    async with client.post("/get_reward", **request) as response:
        body = await response.json()
        assert (response.status, list(body)) == (status, ["error"])
        assert sentence in body["error"]
        assert body["error"].endswith(".")


def test_what_our_own_client_reads():
    scored = lengths(["a", "b" * 9])
    sent = json.loads(json.dumps(answer(scored), allow_nan=False))
    assert sent == {"rewards": [1.0, 9.0], "scores": [1.0, 9.0], "extra_logs": {"truncated": [0.0, 1.0]}}
    assert read_answer(sent, 2) == Answer([1.0, 9.0], [1.0, 9.0], {"truncated": [0.0, 1.0]})


def test_a_request_of_openrlhf():
    body = {"query": ["Q: 1", "Q: "], "prompts": ["Q: ", "Q: "], "labels": [None, {"any": ["thing"]}]}

    async def scenario(client):
        async with client.post("/get_reward", json=body) as response:
            assert response.status == 200
            assert response.content_type == "application/json"
            assert (await response.json())["rewards"] == [4.0, 3.0]
        async with client.post("/get_reward", json={"query": []}) as response:
            assert await response.json() == answer([])
        async with client.get("/health") as response:
            assert await response.json() == {"status": "ok", **ABOUT, "requests": 1, "texts": 2, "waiting": 0}

    asked(scenario)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "the body is not JSON"),
        (b"query=hello", "the body is not JSON"),
        (b'{"query": ["a"', "the body is not JSON"),
        (b'{"query": ["\xff"]}', "the body is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"query": [' + b"9" * 5000 + b"]}", "the body is not JSON"),
        (b'["a"]', "the body is a JSON list, not an object"),
        (b"null", "the body is a JSON null"),
        (b'{"queries": ["a"]}', "the body has no 'query' (its keys: queries)"),
        (b"{}", "(its keys: none)"),
        (b'{"query": "hello"}', "'query' is a text, not a list of texts"),
        (b'{"query": null}', "'query' is a null"),
        (b'{"query": ["a", 3]}', "query[1] is a number, not a text"),
        (b'{"query": ["a", ["b"]]}', "query[1] is a list"),
        (b'{"query": [true]}', "query[0] is a boolean"),
        (b'{"query": ["a", "\\ud800"]}', "query[1] holds half of a surrogate pair"),
    ],
)
def test_malformed_bodies(body, sentence):
    with pytest.raises(Refused) as caught:
        queries_of(body)
    assert caught.value.status == 400
    assert sentence in caught.value.sentence
    assert caught.value.sentence.endswith(".")
    asked(lambda client: refused(client, 400, sentence, data=body))


def test_texts_are_taken_in_every_script():
    texts = ["", "µ 漢 🙂", "\x00\n", "e\u0301"]
    for ascii_only in (True, False):
        assert queries_of(json.dumps({"query": texts}, ensure_ascii=ascii_only).encode()) == texts


def test_a_compressed_body_is_not_unpacked():
    headers = {"Content-Encoding": "gzip"}
    data = b"\x1f\x8b" + bytes(50)
    asked(lambda client: refused(client, 400, "the body is not JSON", data=data, headers=headers))


def test_too_large():
    limits = Limits(request=100, waiting=1000)
    asked(lambda client: refused(client, 413, "101 bytes, and 100 are the most", data=b"x" * 101), limits=limits)


def test_without_a_length():
    async def parts():
        yield b'{"query": []}'

    asked(lambda client: refused(client, 411, "no Content-Length", data=parts()))


def test_what_waits_is_bounded_and_room_is_made_again():
    go = threading.Event()

    def held(texts):
        assert go.wait(20)
        return lengths(texts)

    body = json.dumps({"query": ["x" * 50]}).encode()

    async def scenario(client):
        first = asyncio.create_task(client.post("/get_reward", data=body))
        while not (await (await client.get("/health")).json())["waiting"]:
            await asyncio.sleep(0.001)
        await refused(client, 503, "1 texts are waiting already", data=body)
        go.set()
        assert (await first).status == 200
        for _ in range(5):
            assert (await client.post("/get_reward", data=body)).status == 200

    asked(scenario, held, Limits(request=len(body), waiting=2 * len(body) - 1))


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/get_reward", 405), ("POST", "/", 404)])
def test_other_routes(method, path, status):
    async def scenario(client):
        async with client.request(method, path) as response:
            assert response.status == status
            assert (await response.json())["error"].endswith("POST /get_reward or GET /health.")

    asked(scenario)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_score_that_is_no_number(number):
    def broken(texts):
        return [Scored(number if text == "bad" else 0.0, False, 1) for text in texts]

    data = json.dumps({"query": ["good", "bad"]}).encode()
    asked(lambda client: refused(client, 500, f"score of query[1] is {number}", data=data), broken)


def test_a_lack_of_memory_is_a_sentence():
    def poor(texts):
        raise ResourceError("Out of memory in phase score of the reward.")

    asked(lambda client: refused(client, 500, "Out of memory", data=b'{"query": ["a"]}'), poor)


def test_a_defect_keeps_its_traceback(caplog):
    def defect(texts):
        raise ZeroDivisionError("ours")

    async def scenario(client):
        async with client.post("/get_reward", json={"query": ["a"]}) as response:
            assert response.status == 500
            assert "ours" not in await response.text()

    with caplog.at_level(logging.ERROR):
        asked(scenario, defect)
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("request_line", [b"GET /health HTTP/1.1", b"hello", b"GET / HTTP/1.1\r\nContent-Length: many"])
def test_broken_http_is_refused_without_a_traceback(caplog, request_line):
    async def scenario(client):
        address = str(client._base_url).split("/")[2].split(":")
        reader, writer = await asyncio.open_connection(address[0], int(address[1]))
        writer.write(request_line + b"\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
        assert (await client.get("/health")).status == 200

    asked(scenario)
    assert not [record for record in caplog.records if record.exc_info]


def test_who_has_gone_leaves_the_line():
    go, rounds = threading.Event(), []

    def held(texts):
        rounds.append(list(texts))
        assert go.wait(20)
        return lengths(texts)

    async def scenario(client):
        async def waiting():
            return (await (await client.get("/health")).json())["waiting"]

        first = asyncio.create_task(client.post("/get_reward", json={"query": ["first"]}))
        while not rounds:
            await asyncio.sleep(0.001)
        gone = asyncio.create_task(client.post("/get_reward", json={"query": ["gone"] * 7}))
        while await waiting() != 8:
            await asyncio.sleep(0.001)
        gone.cancel()
        while await waiting() != 1:
            await asyncio.sleep(0.001)
        go.set()
        assert (await first).status == 200

    asked(scenario, held)
    assert rounds == [["first"]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_asked_before_the_end_is_answered(number):
    said, go = [], threading.Event()

    def held(texts):
        assert go.wait(20)
        return lengths(texts)

    async def scenario():
        listener = listen("127.0.0.1", 0)
        url = url_of(listener)
        serving = asyncio.create_task(serve(listener, Line(held, print), ROOMY, ABOUT, said.append))
        async with ClientSession() as client:
            asked = asyncio.create_task(client.post(url, json={"query": ["abc"] * 300}))
            while not (await (await client.get(url.replace("get_reward", "health"))).json())["waiting"]:
                await asyncio.sleep(0.001)
            os.kill(os.getpid(), number)
            while not said:
                await asyncio.sleep(0.001)
            async with ClientSession() as late:
                with pytest.raises(ClientConnectorError):
                    await late.post(url, json={"query": ["abc"]})
            go.set()
            response = await asked
            assert (response.status, len((await response.json())["rewards"])) == (200, 300)
            await serving

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert said == ["stopping within 5 s; 300 texts are waiting for their scores."]


def test_a_port_is_taken_once():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert url_of(first) == f"http://127.0.0.1:{port}/get_reward"
        assert not reached_from_elsewhere(first)
        with pytest.raises(ResourceError, match=rf"port {port} is in use; give another --port"):
            listen("127.0.0.1", port)
    with listen("127.0.0.1", port):
        pass  # free again


def test_addresses():
    with listen("0.0.0.0", 0) as everywhere:
        assert reached_from_elsewhere(everywhere)
    with pytest.raises(ResourceError, match=r"192\.0\.2\.1 .* this machine does not have that address"):
        listen("192.0.2.1", 0)  # RFC 5737: documentation
    with pytest.raises(ResourceError, match="there is no such address"):
        listen("no such host", 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6():
    try:
        listener = listen("::1", 0)
    except ResourceError:
        pytest.skip("no IPv6 loopback")
    with listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}/get_reward"
        assert not reached_from_elsewhere(listener)


PROMPT = "Once upon a time there were\nthree caf\u00e9s. Which? "


@pytest.mark.parametrize(
    ("query", "response"),
    [
        (f"{PROMPT}The first.", "The first."),
        (PROMPT, ""),
        (f"{PROMPT[13:]}The first.", "The first."),
        (f"\ufffd{PROMPT[13:]}The first.", "The first."),
        (PROMPT.replace("\u00e9", "e\u0301") + "The first.", "The first."),
        ("", None),
        (" ", None),
        ("Which? ", None),
        ("Which? The first of all cafes.", None),
        (f"Twice {PROMPT}", None),
    ],
)
def test_what_follows_a_prompt(query: str, response: str | None):
    if response is None:
        with pytest.raises(Refused, match=r"query\[3\] does not begin with prompts\[3\], nor with its end"):
            response_of(query, PROMPT, 3, "send it")
    else:
        assert response_of(query, PROMPT, 3, "send it") == response
