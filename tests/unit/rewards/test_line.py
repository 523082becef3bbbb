"""Many who ask one model at the same time: everybody gets the scores of his own texts, and nobody waits for all."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.device import Device
from openrlhf_ext.errors import ResourceError
from openrlhf_ext.models.scorer import LocalScorer
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model
from openrlhf_ext.rewards import line as module
from openrlhf_ext.rewards.line import TEXTS_AT_ONCE, Line, Scored, TextScorer

SHAPE = TinyShape(hidden=32, layers=1, heads=1, kv_heads=1, intermediate=64, vocab=300, max_positions=64)


class Lengths:
    """A text's length is its score. Each round can be held until `go` is set."""

    def __init__(self, held: bool = False) -> None:
        self.rounds: list[list[str]] = []
        self.go = threading.Event()
        if not held:
            self.go.set()

    def __call__(self, texts):
        self.rounds.append(list(texts))
        assert self.go.wait(20)
        return [Scored(float(len(text)), truncated=False, tokens=len(text)) for text in texts]


def working(score, scenario, said=None):
    """Run `scenario(line)` while the line works."""

    async def both():
        line = Line(score, (said if said is not None else []).append)
        work = asyncio.create_task(line.work())
        try:
            return await asyncio.wait_for(scenario(line), 20)
        finally:
            work.cancel()

    return asyncio.run(both())


def scores(scored):
    return [each.score for each in scored]


async def first_round(score):
    while not score.rounds:
        await asyncio.sleep(0.001)


def test_each_gets_the_scores_of_its_own_texts():
    requests = [["x" * (7 * i % 13) for i in range(start, start + 1 + start % 5)] for start in range(60)]

    async def ask_all(line):
        answers = await asyncio.gather(*(line.ask(texts) for texts in requests))
        return answers, line.requests, line.texts, line.waiting

    answers, count, texts, waiting = working(Lengths(), ask_all)
    assert [scores(answer) for answer in answers] == [[float(len(text)) for text in texts] for texts in requests]
    assert (count, texts, waiting) == (60, sum(map(len, requests)), 0)


def test_those_who_ask_while_the_model_works_are_scored_together():
    score = Lengths(held=True)

    async def scenario(line):
        asked = [asyncio.create_task(line.ask(["a"]))]
        await first_round(score)
        asked += [asyncio.create_task(line.ask(["b" * i])) for i in range(100)]
        await asyncio.sleep(0)
        score.go.set()
        await asyncio.gather(*asked)

    working(score, scenario)
    assert [len(texts) for texts in score.rounds] == [1, 100]


def test_a_small_request_does_not_wait_for_the_whole_of_a_large_one():
    score = Lengths(held=True)
    ended = []

    async def scenario(line):
        async def ask(name, texts):
            ended.append((name, len(await line.ask(texts))))

        large = asyncio.create_task(ask("large", ["l"] * (4 * TEXTS_AT_ONCE)))
        await first_round(score)
        small = asyncio.create_task(ask("small", ["s"] * 10))
        await asyncio.sleep(0)
        score.go.set()
        await asyncio.gather(large, small)

    working(score, scenario)
    assert ended == [("small", 10), ("large", 4 * TEXTS_AT_ONCE)]
    assert score.rounds[1].count("s") == 10
    assert all(len(texts) <= TEXTS_AT_ONCE for texts in score.rounds)
    assert sum(map(len, score.rounds)) == 4 * TEXTS_AT_ONCE + 10, "nothing twice"


def test_more_requests_than_a_round_has_room_for():
    score = Lengths()

    async def scenario(line):
        return await asyncio.gather(*(line.ask(["x" * (i % 7)] * 3) for i in range(2 * TEXTS_AT_ONCE)))

    answers = working(score, scenario)
    assert [scores(answer) for answer in answers] == [[float(i % 7)] * 3 for i in range(2 * TEXTS_AT_ONCE)]


def test_who_has_gone_is_not_scored():
    score = Lengths(held=True)

    async def scenario(line):
        first = asyncio.create_task(line.ask(["first"]))
        await first_round(score)
        gone, stays = asyncio.create_task(line.ask(["gone"] * 3)), asyncio.create_task(line.ask(["stays"]))
        await asyncio.sleep(0)
        assert line.waiting == 5
        gone.cancel()
        await asyncio.sleep(0)
        assert line.waiting == 2
        score.go.set()
        await asyncio.gather(first, stays)

    working(score, scenario)
    assert score.rounds == [["first"], ["stays"]]


def test_an_error_is_for_those_whose_texts_were_scored_and_the_line_goes_on():
    async def scenario(line):
        with pytest.raises(ResourceError, match="too little"):
            await line.ask(["bad"])
        return await line.ask(["good"]), line.requests

    def score(texts):
        if "bad" in texts:
            raise ResourceError("too little memory.")
        return [Scored(1.0, truncated=False, tokens=1) for _ in texts]

    answer, count = working(score, scenario)
    assert scores(answer) == [1.0] and count == 1


def test_an_empty_request_is_answered_at_once():
    async def scenario(line):
        return await line.ask([])

    score = Lengths()
    assert working(score, scenario) == []
    assert not score.rounds


def test_a_model_at_work_is_known_to_be_after_the_line_has_ended():
    score = Lengths(held=True)

    async def scenario():
        line = Line(score, print)
        work, asked = asyncio.create_task(line.work()), asyncio.create_task(line.ask(["x"]))
        await first_round(score)
        work.cancel()
        asked.cancel()
        await asyncio.wait([work, asked])
        busy = line.busy
        score.go.set()
        while line.busy:
            await asyncio.sleep(0.001)
        return busy

    assert asyncio.run(scenario())


def test_what_was_done_is_said_now_and_then(monkeypatch):
    said: list[str] = []

    async def scenario(line):
        await line.ask(["abc"])
        await line.ask(["abc"])
        assert not said
        monkeypatch.setattr(module, "SAID_EVERY_S", 0.0)
        await line.ask(["abc"])

    working(Lengths(), scenario, said)
    [text] = said
    assert text.startswith("scored 3 texts, ") and text.endswith(" tokens a second; 0 are waiting.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = build_tiny_model(tmp_path_factory.mktemp("scorer") / "model", SHAPE)
    torch.manual_seed(5)
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)
    return folder


def test_texts_are_read_as_they_are_spelled_at_their_end(folder):
    """Special tokens by their names, none added; of a long text the end is read; no token at all is an EOS."""
    tokenizer = load_tokenizer(folder)
    scorer = LocalScorer(
        ModelSpec(str(folder), "fp32", kind="reward"), Device("cpu", 0, frozenset()), SplitSettings(rows=3)
    )
    turn = "<|im_start|>user\nHow?<|im_end|>"
    long = "".join(chr(97 + i % 26) for i in range(100))
    score = TextScorer(scorer, tokenizer, max_tokens=40)
    found = score([turn, long, "", long[-40:], "<|im_end|>"])
    assert [each.truncated for each in found] == [False, True, False, False, False]
    assert [each.tokens for each in found] == [len("user\nHow?") + 2, 40, 1, 40, 1]
    assert found[1].score == pytest.approx(found[3].score, abs=1e-6)
    assert found[2].score == pytest.approx(found[4].score, abs=1e-6)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        ids = tokenizer(turn, return_tensors="pt")["input_ids"]
        expected = float(model.score(model.model(ids).last_hidden_state)[0, -1, 0])
    assert found[0].score == pytest.approx(expected, abs=1e-5)
