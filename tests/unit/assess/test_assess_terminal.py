"""The terminal's page with a pilot at its keys: what is pressed is what the file says."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from made_up import FIRST, SECOND, Office, assessment, table
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Static

from openrlhf_ext.assess.assessment import JUDGEMENTS
from openrlhf_ext.assess.desk import Desk
from openrlhf_ext.assess.log import JudgementLog
from openrlhf_ext.assess.terminal import AssessApp, Help
from openrlhf_ext.assess.verdicts import Choice, Hallucination


def piloted(office: Office, scenario: Callable[[Pilot, AssessApp], Awaitable[None]], rater: str = "anna") -> None:
    async def run() -> None:
        app = AssessApp(office.desks[rater])
        async with app.run_test(size=(100, 30)) as pilot:
            await scenario(pilot, app)

    asyncio.run(run())


def shown(app: AssessApp, name: str) -> str:
    return str(app.query_one(f"#{name}", Static).render())


def saved(office: Office, rater: str = "anna") -> dict:
    desk = Desk(office.assessment, JudgementLog(office.folder / JUDGEMENTS, office.assessment), rater)
    return {key: (said.said, said.note) for key, said in desk.judged.items()}


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path, assessment([table(FIRST, 4)]))


def test_judging_by_the_keyboard(office: Office) -> None:
    first, second, third, fourth = office.desks["anna"].keys

    async def scenario(pilot: Pilot, app: AssessApp) -> None:
        assert shown(app, "position") == "Item 1 of 4"
        assert "stage-a says" in shown(app, "answer-0-text")
        await pilot.press("m", "right", "space", "right", "space", "2")  # "says N", a wrong inference
        assert saved(office) == {first: (Hallucination(True, "wrong_inference", ((8, 14),)), "")}
        await pilot.press("c", "n", "2", "?", "enter", "n")
        assert saved(office)[second] == (Hallucination(False), "n2?")
        await pilot.press("s")
        assert shown(app, "position") == "Item 4 of 4"
        await pilot.press("y", "1")
        assert saved(office)[fourth][0] == Hallucination(True, "fabricated")
        assert shown(app, "position") == "Item 3 of 4"  # the skipped one
        await pilot.press("3")
        assert shown(app, "position") == "The end" and len(saved(office)) == 4
        await pilot.press("u")
        assert shown(app, "position") == "Item 3 of 4" and third not in saved(office)
        await pilot.press("u", "u")
        assert shown(app, "position") == "Item 2 of 4" and list(saved(office)) == [first]
        await pilot.press("n")
        assert saved(office)[second] == (Hallucination(False), "n2?")  # the note is there again
        await pilot.press("q")

    piloted(office, scenario)
    assert list(saved(office)) == [first, second]


def test_it_goes_on_where_it_was_left(office: Office) -> None:
    async def some(pilot: Pilot, app: AssessApp) -> None:
        await pilot.press("n", "1", "q")

    async def later(pilot: Pilot, app: AssessApp) -> None:
        assert shown(app, "position") == "Item 3 of 4"
        assert shown(app, "judged") == "2 judged, saved"
        await pilot.press("left")
        assert shown(app, "position") == "Item 2 of 4"
        await pilot.press("n")  # another answer to it
        assert shown(app, "position") == "Item 3 of 4"

    piloted(office, some)
    piloted(office, later)
    assert [said for said, _ in saved(office).values()] == [Hallucination(False)] * 2


def test_preferences(tmp_path: Path) -> None:
    office = Office(tmp_path, assessment([table(FIRST, 3), table(SECOND, 3)], task="preference"))
    keys = office.desks["anna"].keys

    async def scenario(pilot: Pilot, app: AssessApp) -> None:
        answers = office.desks["anna"].sheet(keys[0]).answers
        assert (shown(app, "answer-0-text"), shown(app, "answer-1-text")) == answers
        assert not [word for word in ("aaaa1111", "bbbb2222") if word in shown(app, "verdicts")]
        await pilot.press("1", "5", "1", "a", "t", "2", "b")

    piloted(office, scenario)
    assert [saved(office)[key][0] for key in keys] == [
        Choice("A", ("safe",)),
        Choice("tie"),
        Choice("B", ("complete",)),
    ]


def test_keys_as_fast_as_they_come_act_in_their_order(office: Office) -> None:
    """Pressed without a wait in between: the note has all its letters, and the answers are answers."""

    async def scenario(pilot: Pilot, app: AssessApp) -> None:
        for key in ["n", "c", *"not 1", "enter", "1", "n", "u"]:
            app.post_message(Key(key, key if len(key) == 1 else None))
        await pilot.pause()
        await pilot.pause()
        assert shown(app, "position") == "Item 3 of 4"

    piloted(office, scenario)
    first, second = office.desks["anna"].keys[:2]
    assert saved(office) == {first: (Hallucination(False), ""), second: (Hallucination(True, "fabricated"), "not 1")}


def test_help_takes_a_key_and_judges_nothing(office: Office) -> None:
    async def scenario(pilot: Pilot, app: AssessApp) -> None:
        await pilot.press("?")
        assert isinstance(app.screen, Help)
        await pilot.press("n")
        assert not isinstance(app.screen, Help)
        assert saved(office) == {}

    piloted(office, scenario)


def test_what_cannot_be_saved_stays_and_is_said(office: Office) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def scenario(pilot: Pilot, app: AssessApp) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        try:
            await pilot.press("n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert shown(app, "position") == "Item 1 of 4"
        assert "not saved" in next(iter(app._notifications)).message
        await pilot.press("n")
        assert shown(app, "position") == "Item 2 of 4"

    piloted(office, scenario)
    assert len(saved(office)) == 1
