"""A scripted stand-in for a reader, so that the story runs unattended: it judges by a stated rule and not by reading.

The rule: a sentence is unsupported if more than half of its content words (four letters and more) do not occur in the
abstract or the question. An answer with such a sentence, or without any word, is hallucinated (`unsupported_detail`);
the sentences are the passages. What the words say plays no part, so a contradiction in the abstract's own words passes.
It speaks to the page of `openrlhf-ext assess` over HTTP, as a reader's browser does.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

WORD = re.compile(r"[A-Za-z]{4,}")
SENTENCE = re.compile(r"[^.!?]+[.!?]*")
ENOUGH = 0.5


def judge_all(link: str) -> int:
    """Judge what is left of the items behind a reader's link; returns how many were judged now."""
    state = _asked(f"{link}state")
    judged = {said["item"] for said in state["history"]}
    left = [item["key"] for item in state["items"] if item["key"] not in judged]
    for key in left:
        sheet = _asked(f"{link}items/{key}")
        (answer,) = sheet["answers"]
        verdict = verdict_on(answer, f"{sheet['context'] or ''} {sheet['prompt']}")
        said = {"id": secrets.token_hex(8), "item": key, "verdict": verdict, "note": "by the rule of rater.py"}
        _asked(f"{link}judgements", said | {"seconds": None})
    return len(left)


def verdict_on(answer: str, source: str) -> dict[str, Any]:
    """Whether an answer is hallucinated by the rule, with the passages (characters, from the first to before the
    last)."""
    known = set(_words(source))
    spans = []
    for sentence in SENTENCE.finditer(answer):
        words = _words(sentence.group())
        unknown = [word for word in words if word not in known]
        if words and len(unknown) > ENOUGH * len(words):
            start = sentence.start() + len(sentence.group()) - len(sentence.group().lstrip())
            spans.append([start, sentence.end()])
    present = bool(spans) or not _words(answer)
    return {"present": present, "kind": "unsupported_detail" if present else None, "spans": spans}


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def _asked(url: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON behind a link of this machine."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data=data, headers={"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
        return json.load(answer)
