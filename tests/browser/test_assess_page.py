"""The page as raters use it: by the keyboard, reloaded, left by its server, with hostile text, on small screens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import run
from playwright.sync_api import Browser, Page, expect
from served import Served
from sklearn.metrics import cohen_kappa_score

from openrlhf_ext.evaluation.answers import Answerer, AnswerRow, Outcome, content_keys, write_answers

ITEMS, OVERLAP = 20, 10
HOSTILE = '</div><script>document.title="owned"</script><img src=x onerror=\'document.title="owned"\'> \u202e &amp;'


def bad(rater: str, i: int) -> bool:
    """What a rater thinks of answer i."""
    return i % 3 == 0 if rater == "anna" else (i % 3 == 0) != (i % 4 == 1)


def answers(folder: Path, name: str, fingerprint: str) -> None:
    """Answer i says its number; the judge in the table takes every second one for wrong."""
    contents = [(f"Question {i}?", f"Reference {i}.", f"Source {i} 🙂 says little.") for i in range(ITEMS)]
    outcomes: list[Outcome] = ["wrong" if i % 2 else "right" for i in range(ITEMS)]
    rows = [
        AnswerRow(key, 0, "set", prompt, f"The 🙂 answer of number {i} is {name} words long.", outcomes[i],
                  reference=reference, context=context)
        for i, (key, (prompt, reference, context)) in enumerate(zip(content_keys(contents), contents))
    ]  # fmt: skip
    write_answers(folder / name, Answerer(name, fingerprint), rows)


class Rater:
    """Somebody at a keyboard."""

    def __init__(self, browser: Browser, served: Served, name: str, **context) -> None:
        self.name = name
        self.page: Page = browser.new_context(**context).new_page()
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: self.faults.append(message.text) if "Refused to" in message.text else 0)
        self.page.goto(served.links[name])
        self.seen: list[int] = []

    def number(self) -> int:
        """Which answer is shown, once it is another one than before."""
        number = re.compile(r"number (\d+)")
        expect(self.page.locator("#sheet")).to_have_attribute("aria-busy", "false")
        found = number.search(self.page.locator("#answer-0 .text").inner_text())
        assert found
        return int(found[1])

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def judge(self) -> int:
        i = self.number()
        assert i not in self.seen
        self.seen.append(i)
        if bad(self.name, i):
            self.press("m", "ArrowRight", "ArrowRight", "Space", "ArrowRight", "Space", str(1 + i % 4))
        else:
            self.press("n")
        return i

    def saved(self) -> None:
        expect(self.page.locator("#saving")).to_have_text("saved")


def test_twenty_items_two_raters_a_reload_and_a_server_that_is_killed(
    browser: Browser, serve: Callable[..., Served], tmp_path: Path
) -> None:
    answers(tmp_path, "tiny", "f00d")
    served = serve("--assess.answers", "tiny", "--assess.raters", "anna", "ben", "--assess.overlap", str(OVERLAP))
    anna, ben = (Rater(browser, served, name) for name in ("anna", "ben"))
    expect(anna.page.locator("#position")).to_have_text("Item 1 of 15")
    for _ in range(5):
        anna.judge()
        ben.judge()

    # a reload in the middle, with a note and a mark that were not sent yet
    i = anna.number()
    anna.press("c")
    anna.page.keyboard.type("é?n1")
    anna.press("Escape", "m", "ArrowRight", "Space", "Space", "Escape")
    anna.saved()
    anna.page.reload()
    assert anna.number() == i
    expect(anna.page.locator("#note")).to_have_value("é?n1")
    expect(anna.page.locator("#answer-0 .marked")).to_have_text("🙂")
    expect(anna.page.locator("#judged")).to_have_text("5 judged")
    anna.press("n")
    anna.seen.append(i)
    anna.saved()
    assert [line["note"] for line in served.lines() if line["note"]] == ["é?n1"]

    # the server is killed between two answers
    ben.saved()
    before = len(served.lines())
    served.kill()
    lost = [ben.judge(), ben.judge()]  # the next item was there already
    expect(ben.page.locator("#away")).to_be_visible()
    expect(ben.page.locator("#away")).to_contain_text("2 answers are not saved yet", timeout=30_000)
    expect(ben.page.locator("#saving")).to_have_text("not saved")
    assert len(served.lines()) == before
    served.start()
    expect(ben.page.locator("#away")).to_be_hidden(timeout=30_000)
    ben.saved()
    assert len(served.lines()) == before + 2
    assert [served.lines()[-2 + place]["verdict"]["present"] for place in (0, 1)] == [bad("ben", i) for i in lost]

    for rater in (anna, ben):
        while len(rater.seen) < 15:
            rater.judge()
        expect(rater.page.locator("#done")).to_be_visible()
        expect(rater.page.locator("#done-words")).to_have_text("You have judged all 15 items.")
        expect(rater.page.locator("#done-saved")).to_have_text("Every answer is saved: you can close this page.")
        rater.saved()
        assert not rater.faults
    check_figures(served, anna.seen, ben.seen, judged_no=i)
    check_export(served, judged_no=i)


def check_figures(served: Served, anna: list[int], ben: list[int], judged_no: int) -> None:
    """`judged_no`: what anna said no to, whatever she thought."""
    said = {"anna": {i: bad("anna", i) and i != judged_no for i in anna}, "ben": {i: bad("ben", i) for i in ben}}
    shared = sorted(set(anna) & set(ben))
    assert len(shared) == OVERLAP and set(anna) | set(ben) == set(range(ITEMS))
    found = served.report()
    assert found["judgements"] == 30 and found["unjudged"] == 0
    (pair,) = found["agreement"]["pairs"]
    expected = cohen_kappa_score([said["anna"][i] for i in shared], [said["ben"][i] for i in shared])
    assert pair["items"] == OVERLAP and pair["kappa"]["value"] == pytest.approx(expected)
    settled = {i: {name: own[i] for name, own in said.items() if i in own} for i in range(ITEMS)}
    settled_words = {i: next(iter(own.values())) for i, own in settled.items() if len(set(own.values())) == 1}
    (model,) = found["models"]
    assert (model["judged"], model["hallucinated"]) == (len(settled_words), sum(settled_words.values()))
    assert found["disputed"] == ITEMS - len(settled_words)
    (judge,) = found["judge"]
    people = [not word for word in settled_words.values()]
    assert judge["kappa"]["value"] == pytest.approx(cohen_kappa_score(people, [i % 2 == 0 for i in settled_words]))


def check_export(served: Served, judged_no: int) -> None:
    flags = "export --assess.folder assessment --export.judgements all.jsonl --export.preferences pairs.jsonl"
    run("assess", [*flags.split(), "--export.with_references"], served.folder)
    rows = [json.loads(line) for line in (served.folder / "all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 30
    for row in rows:
        i = int(re.search(r"number (\d+)", row["answer"])[1])
        wanted = bad(row["rater"], i) and (row["rater"], i) != ("anna", judged_no)
        assert row["hallucinated"] == wanted and row["model"] == "tiny"
        assert [passage["text"] for passage in row["passages"]] == (["answer of"] if wanted else [])
        assert row["kind"] == (["fabricated", "wrong_inference", "contradiction", "unsupported_detail"][i % 4]
                               if wanted else None)  # fmt: skip
    pairs = [json.loads(line) for line in (served.folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert pairs and all(pair["chosen"].startswith("Reference") for pair in pairs)


def test_undo_back_and_another_answer(browser: Browser, serve: Callable[..., Served], tmp_path: Path) -> None:
    answers(tmp_path, "tiny", "f00d")
    served = serve("--assess.answers", "tiny", "--assess.items", "4")
    rater = Rater(browser, served, "rater")
    position = rater.page.locator("#position")
    numbers = [rater.number()]
    rater.press("m", "ArrowRight", "Space", "Space", "2")
    expect(position).to_have_text("Item 2 of 4")
    rater.press("s")
    expect(position).to_have_text("Item 3 of 4")
    rater.number()
    rater.press("n")
    expect(position).to_have_text("Item 4 of 4")
    rater.number()
    rater.press("u", "u")
    expect(position).to_have_text("Item 1 of 4")
    assert rater.number() == numbers[0]
    expect(rater.page.locator(".marked")).to_have_text("🙂")  # as it was answered
    rater.press("y")
    expect(rater.page.locator("#question")).to_have_text("Of which type? Press 1 to 4.")
    rater.press("1")
    expect(position).to_have_text("Item 2 of 4")
    rater.number()
    rater.press("ArrowLeft")
    rater.number()
    expect(rater.page.locator('#verdicts [aria-pressed="true"]')).to_have_text("Fabricated 1")
    rater.press("n")  # another answer to it
    rater.saved()
    rater.press("?")
    expect(rater.page.locator("#help")).to_be_visible()
    rater.press("n", "1")  # judge nothing
    rater.press("Escape")
    expect(rater.page.locator("#help")).to_be_hidden()
    rater.page.reload()
    expect(rater.page.locator("#judged")).to_have_text("1 judged")
    assert [line.get("verdict", {}).get("present", "undo") for line in served.lines()] == [
        True, False, "undo", "undo", True, False
    ]  # fmt: skip
    assert not rater.faults


def test_a_passage_marked_with_the_mouse(browser: Browser, serve: Callable[..., Served], tmp_path: Path) -> None:
    answers(tmp_path, "tiny", "f00d")
    served = serve("--assess.answers", "tiny", "--assess.items", "1")
    rater = Rater(browser, served, "rater")
    number = rater.number()
    words = rater.page.locator("#answer-0 .text span")
    boxes = [words.nth(place).bounding_box() for place in range(words.count())]
    texts = words.all_inner_texts()
    start, end = boxes[texts.index("🙂")], boxes[texts.index("of")]
    rater.page.mouse.move(start["x"] + 2, start["y"] + 5)
    rater.page.mouse.down()
    rater.page.mouse.move(end["x"] + end["width"] - 2, end["y"] + 5, steps=5)
    rater.page.mouse.up()
    assert "".join(rater.page.locator(".marked").all_inner_texts()) == "🙂 answer of"
    rater.press("3")
    rater.saved()
    (line,) = served.lines()
    text = f"The 🙂 answer of number {number} is tiny words long."
    assert [text[slice(*span)] for span in line["verdict"]["spans"]] == ["🙂 answer of"]
    rater.press("ArrowLeft")
    rater.number()
    rater.page.locator(".marked").first.click()  # a click takes the mark away
    expect(rater.page.locator(".marked")).to_have_count(0)


def test_preferences_are_blind_and_saved_by_model(
    browser: Browser, serve: Callable[..., Served], tmp_path: Path
) -> None:
    for name, fingerprint in (("short", "f1"), ("long", "f2")):
        answers(tmp_path, name, fingerprint)
    served = serve("--assess.task", "preference", "--assess.answers", "short", "long")
    rater = Rater(browser, served, "rater")
    sides = []
    for _ in range(ITEMS):
        rater.number()
        left = rater.page.locator("#answer-0 .text").inner_text()
        sides.append("short" in left)
        assert "f1" not in rater.page.content() and "f2" not in rater.page.content()
        rater.press("1", "a" if "is long" in left else "b")  # the long one is always better
    rater.saved()
    expect(rater.page.locator("#done")).to_be_visible()
    assert 3 <= sum(sides) <= 17  # the sides are turned
    assert {line["verdict"]["preferred"] for line in served.lines()} == {"f2"}
    assert all(line["verdict"]["reasons"] == ["accurate"] for line in served.lines())
    found = served.report()["preference"]
    assert (found["second"]["wins"], found["first"]["wins"]) == (ITEMS, 0)
    assert found["sign_test_p"] < 1e-5
    assert not rater.faults


@pytest.mark.parametrize("size", [(1280, 800), (700, 900), (360, 640)], ids=str)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_and_long_text_stays_text_and_in_its_place(
    browser: Browser, serve: Callable[..., Served], tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    long = "x" * 400 + " " + "word " * 800
    rows = [{"prompt": HOSTILE + long, "answer": HOSTILE + long, "source": HOSTILE + long, "reference": ""},
            {"prompt": "", "answer": "", "source": "", "reference": None}]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = "--data.dataset rows.jsonl --data.context_key source --data.reference_key reference"
    served = serve(*keys.split())
    viewport = {"width": size[0], "height": size[1]}
    rater = Rater(browser, served, "rater", viewport=viewport, color_scheme=scheme)
    page = rater.page
    for _ in range(2):
        expect(page.locator("#sheet")).to_have_attribute("aria-busy", "false")
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        for place in page.locator("#verdicts button").all():
            box = place.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= size[0]
        if page.locator("#answer-0 .text").inner_text() != "(an empty answer)":
            shown = (HOSTILE + long).replace("\u202e", "\ufffd")
            for where in ("#prompt .text", "#answer-0 .text", "#context"):
                assert page.locator(where).evaluate("node => node.textContent") == shown
        page.keyboard.press("n")
    expect(page.locator("#done")).to_be_visible()
    assert page.title() == "rater: assessment"
    assert not rater.faults


def test_a_link_that_is_wrong(browser: Browser, serve: Callable[..., Served], tmp_path: Path) -> None:
    answers(tmp_path, "tiny", "f00d")
    served = serve("--assess.answers", "tiny")
    page = browser.new_page()
    response = page.goto(served.links["rater"][:-3] + "000/")
    assert response.status == 404
    assert "open the link as it was printed" in page.content()
