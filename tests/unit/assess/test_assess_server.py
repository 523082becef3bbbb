"""The page's server over real connections: who may ask, what is told, and that an answer means that it is saved."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession
from made_up import FIRST, SECOND, Office, assessment, table

from openrlhf_ext.assess.assessment import JUDGEMENTS, SECRET
from openrlhf_ext.assess.items import Table
from openrlhf_ext.assess.log import JudgementLog
from openrlhf_ext.assess.server import LARGEST_REQUEST, AssessmentServer, tokens
from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.answers import AnswerRow
from openrlhf_ext.rewards.server import listen

HOSTILE = "</div><script>alert(1)</script><img src=x onerror=alert(1)> &amp; \u202e\x1b[2J 🙂"


def asked(office: Office, scenario: Callable[[ClientSession, dict[str, str]], Awaitable[None]], names=()) -> None:
    """Run `scenario` with a client of the real server and the raters' tokens."""

    async def both() -> None:
        links = tokens(office.folder, office.assessment)
        listener = listen("127.0.0.1", 0)
        server = AssessmentServer(office.assessment, office.log, links, frozenset(names))
        runner = await server.start(listener)
        try:
            async with ClientSession(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
                await asyncio.wait_for(scenario(client, links), 20)
        finally:
            await runner.cleanup()

    asyncio.run(both())


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path, assessment([table(FIRST, 3)]))


def judgement(key: str, **changes) -> dict:
    return {"id": "12345678", "item": key, "verdict": {"present": False}, "note": "", "seconds": 1, **changes}


async def get(client: ClientSession, path: str, **more) -> tuple[int, str, dict[str, str]]:
    async with client.get(path, **more) as response:
        return response.status, await response.text(), dict(response.headers)


async def post(client: ClientSession, path: str, body, **more) -> tuple[int, dict]:
    async with client.post(path, json=body, **more) as response:
        return response.status, await response.json()


def test_without_a_token_there_is_nothing(office: Office) -> None:
    async def scenario(client: ClientSession, links: dict[str, str]) -> None:
        token = links["anna"]
        wrong = token[:-1] + ("0" if token[-1] != "0" else "1")
        for path in ("/", "/favicon.ico", "/state", f"/{wrong}/", f"/{wrong}/state", f"/{wrong}/page.js",
                     f"/{wrong}/items/x", f"/{token}", f"/{token}/../state", "/page.html", "/%ff/state"):  # fmt: skip
            status, text, headers = await get(client, path, allow_redirects=False)
            assert (path, status) == (path, 404)
            assert "stage-a" not in text and "open the link as it was printed." in json.loads(text)["error"]
            assert "default-src 'none'" in headers["Content-Security-Policy"]
        for path in ("judgements", "undo"):
            assert (await post(client, f"/{wrong}/{path}", judgement("x")))[0] == 404
        assert (await get(client, f"/{token}/state"))[0] == 200
        for path in (f"/{token}/nothing.js", f"/{token}/..%2fserver.py", f"/{token}/__init__.py"):
            assert (await get(client, path))[0] == 404

    asked(office, scenario)


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8600", 200), ("localhost:1234", 200), ("LOCALHOST", 200), ("[::1]:80", 200), ("192.168.1.9", 200),
     ("evil.example", 403), ("localhost.evil.example:8600", 403), ("", 403), ("me.lan", 200), ("[evil", 403)],
)  # fmt: skip
def test_a_name_that_was_made_to_mean_this_machine(office: Office, host: str, status: int) -> None:
    async def scenario(client: ClientSession, links: dict[str, str]) -> None:
        found = await get(client, f"/{links['anna']}/state", headers={"Host": host})
        assert found[0] == status
        assert (await post(client, f"/{links['anna']}/undo", {}, headers={"Host": host}))[0] in (400, status)

    asked(office, scenario, names=["me.lan"])


def test_the_page_and_its_files(office: Office) -> None:
    async def scenario(client: ClientSession, links: dict[str, str]) -> None:
        status, page, headers = await get(client, f"/{links['anna']}/")
        assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("no-referrer", "no-store")
        assert (
            "http" not in page and "<script>" not in page and "style=" not in page
        )  # nothing from elsewhere, or inline
        for name, kind in (("page.js", "text/javascript"), ("page.css", "text/css"), ("outbox.js", "text/javascript"),
                           ("marking.js", "text/javascript"), ("icon.svg", "image/svg+xml")):  # fmt: skip
            status, text, headers = await get(client, f"/{links['anna']}/{name}")
            assert (status, headers["Content-Type"].partition(";")[0]) == (200, kind)
            assert "innerHTML" not in text  # what a model wrote is never markup

    asked(office, scenario)


def test_an_item_is_blind_and_hostile_text_is_data(tmp_path: Path) -> None:
    tables = [
        Table(model, [AnswerRow("k", 0, "set", HOSTILE, f"{HOSTILE} {n}", "right", reference=HOSTILE, context=HOSTILE)])
        for n, model in enumerate((FIRST, SECOND))
    ]
    office = Office(tmp_path, assessment(tables, task="preference"))

    async def scenario(client: ClientSession, links: dict[str, str]) -> None:
        (key,) = office.assessment.by_key
        status, text, headers = await get(client, f"/{links['anna']}/items/{key}")
        assert status == 200 and headers["Content-Type"].startswith("application/json")
        sheet = json.loads(text)
        assert set(sheet) == {"key", "prompt", "answers", "context", "reference"}
        shown = HOSTILE.replace("\u202e", "\ufffd").replace("\x1b", "␛")
        assert sorted(sheet["answers"]) == [f"{shown} 0", f"{shown} 1"]
        for told in (text, (await get(client, f"/{links['anna']}/state"))[1]):
            assert not [word for word in ("stage", "aaaa1111", "bbbb2222", "right") if word in told]

    asked(office, scenario)


def test_what_is_answered_is_on_the_disk(office: Office) -> None:
    async def scenario(client: ClientSession, links: dict[str, str]) -> None:
        base = f"/{links['anna']}"
        first, second, _ = office.desks["anna"].keys
        verdict = {"present": True, "kind": "fabricated", "spans": [[0, 5]]}
        for _ in range(2):  # sent again because the first answer was lost
            status, told = await post(client, f"{base}/judgements", judgement(first, verdict=verdict, note="é"))
            assert (status, told) == (200, {"judged": 1, "items": 3})
        assert len((office.folder / JUDGEMENTS).read_text().splitlines()) == 1
        await post(client, f"{base}/judgements", judgement(second, id="87654321"))
        state = json.loads((await get(client, f"{base}/state"))[1])
        assert (state["task"], state["rater"]) == ("hallucination", "anna")
        assert [item["key"] for item in state["items"]] == office.desks["anna"].keys
        assert state["history"] == [
            {"id": "12345678", "item": first, "said": verdict, "note": "é"},
            {"id": "87654321", "item": second, "said": {"present": False, "kind": None, "spans": []}, "note": ""},
        ]
        assert (await post(client, f"{base}/undo", {"id": "undo-0001", "of": "12345678"}))[1]["judged"] == 1
        assert json.loads((await get(client, f"/{links['ben']}/state"))[1])["history"] == []
        again = JudgementLog(office.folder / JUDGEMENTS, office.assessment)
        assert list(again.ledger.current("anna")) == [second]

    asked(office, scenario)


def test_one_rater_cannot_undo_for_another(office: Office) -> None:
    async def scenario(client: ClientSession, links: dict[str, str]) -> None:
        key = office.desks["anna"].keys[0]
        await post(client, f"/{links['anna']}/judgements", judgement(key))
        await post(client, f"/{links['ben']}/undo", {"id": "undo-0001", "of": "12345678"})
        assert list(office.desks["anna"].judged) == [key]

    asked(office, scenario)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verdict": None}, "'verdict' must be an object"),
        ({"verdict": {"present": "yes"}}, "'present' must be true or false"),
        ({"verdict": {"present": True}}, "has a kind"),
        ({"verdict": {"present": True, "kind": "rude"}}, "'kind' must be one of fabricated"),
        ({"verdict": {"present": True, "kind": "fabricated", "spans": [[0, 999]]}}, "ends behind the answer"),
        ({"verdict": {"present": True, "kind": "fabricated", "spans": [[2, 1]]}}, "passages are in order"),
        ({"verdict": {"present": True, "kind": "fabricated", "spans": [["0", 1]]}}, "pairs of whole numbers"),
        ({"item": "elsewhere"}, "not among those of anna"),
        ({"item": 3}, "not among those of anna"),
        ({"id": "x"}, "'id' must be a text of 8 to 64"),
        ({"note": 3}, "'note' must be a text"),
        ({"note": "x" * 10_001}, "'note' must be a text"),
        ({"seconds": -1}, "'seconds' must be a number"),
    ],
)
def test_what_cannot_be_taken_is_said(office: Office, changes: dict, said: str) -> None:
    async def scenario(client: ClientSession, links: dict[str, str]) -> None:
        body = judgement(office.desks["anna"].keys[0], **changes)
        status, told = await post(client, f"/{links['anna']}/judgements", body)
        assert status == 400 and said in told["error"] and told["error"].endswith(".")
        assert (office.folder / JUDGEMENTS).read_text() == ""

    asked(office, scenario)


def test_other_bodies(office: Office) -> None:
    async def scenario(client: ClientSession, links: dict[str, str]) -> None:
        path = f"/{links['anna']}/judgements"
        json_type, large = "application/json", "x" * (LARGEST_REQUEST + 1)
        cases = [("{}", "text/plain", 415), ("{", json_type, 400), ("[]", json_type, 400), (large, json_type, 413)]
        for body, kind, status in cases:
            async with client.post(path, data=body, headers={"Content-Type": kind}) as response:
                assert response.status == status
                assert (await response.json())["error"].endswith(".")

    asked(office, scenario)


def test_links_outlive_the_server_and_are_a_secret(office: Office) -> None:
    links = tokens(office.folder, office.assessment)
    assert links == tokens(office.folder, office.assessment)
    assert len(set(links.values())) == 2 and all(len(token) == 32 for token in links.values())
    assert stat.S_IMODE((office.folder / SECRET).stat().st_mode) == 0o600
    (office.folder / SECRET).write_text("")
    with pytest.raises(DataError, match="is no secret"):
        tokens(office.folder, office.assessment)
