"""The serve-rm command, asked by our own client: the model's own scores, from many at once, until it is stopped."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from jobs import Job, job, run
from transformers import AutoModelForSequenceClassification

from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model
from openrlhf_ext.rewards.load import RewardSettings, load_reward
from openrlhf_ext.types import Prompt, Rollout

SHAPE = TinyShape(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=128, vocab=300, max_positions=160)
FLAGS = "--reward.model_name_or_path model --device cpu --ds.param_dtype fp32 --data.max_len 96 --port"
REMEDY = "give another --port, or 0 for any free one"
HTTP = httpx.Client(timeout=60)
MALFORMED = [b"", b"hello", b'["a"]', b'{"prompts": ["a"]}', b'{"query": "a"}', b'{"query": ["a", 1]}']


@dataclass(frozen=True)
class Served:
    folder: Path
    job: Job
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/get_reward"

    def health(self) -> dict[str, Any]:
        return HTTP.get(f"http://127.0.0.1:{self.port}/health").json()

    def ask(self, texts: list[str]) -> list[float]:
        answer = HTTP.post(self.url, json={"query": texts})
        assert answer.status_code == 200, answer.text
        return answer.json()["rewards"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve_rm")
    build_tiny_model(folder / "model", SHAPE)
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    """One for all tests here, because its start takes longest; the last of them ends it."""
    with job("serve-rm", [*FLAGS.split(), "0", "--host", "0.0.0.0"], folder) as process:
        process.until(lambda: "whoever can reach this address" in process.output, "address and warning")
        found = re.search(r"at http://0\.0\.0\.0:(\d+)/get_reward;", process.output)
        assert found
        yield Served(folder, process, int(found[1]))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Some as a chat spells them, one that is too long, and one with nothing in it."""
    chat = "<|im_start|>user\nWhat is {0} and {0}?<|im_end|>\n<|im_start|>assistant\n{1} 漢 µ<|im_end|>"
    return [chat.format(i, 2 * i) for i in range(30)] + ["x" * i for i in range(1, 40)] + ["long " * 50, ""]


@pytest.fixture(scope="module")
def expected(folder: Path, texts: list[str]) -> dict[str, float]:
    """What RewardModel says of each text alone, at the last 96 of its tokens."""
    model, tokenizer = (
        build_model(ModelSpec(str(folder / "model"), "fp32", kind="reward")),
        load_tokenizer(folder / "model"),
    )
    found = {}
    with torch.no_grad():
        for text in texts:
            ids = (tokenizer(text, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id])[-96:]
            row = torch.tensor([ids])
            found[text] = float(model(row, torch.tensor([len(ids)]), torch.zeros(1, len(ids) - 1).bool())[0])
    assert max(found.values()) - min(found.values()) > 0.5, "they can be told apart"
    return found


def test_scores_are_the_models_own(server: Served, texts: list[str], expected: dict[str, float]):
    """As a source of rewards: our client, from rollouts to values."""
    prompts = [Prompt(str(i), (1,), text[: len(text) // 2], None) for i, text in enumerate(texts)]
    groups = [
        (prompt, [Rollout(prompt.id, 0, (1, 2), (False, True), (0.0, 0.0), text[len(text) // 2 :], "stop", (0, 0))])
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    with load_reward([server.url], RewardSettings(timeout_s=60.0)) as reward:
        reward.probe()
        scores = [score for [score] in (each for each in reward.score(groups))]
    assert [score.value for score in scores] == pytest.approx([expected[text] for text in texts], abs=1e-5)
    cut = [score.parts[f"127.0.0.1:{server.port}/truncated"] for score in scores]
    assert cut == [float(text.startswith("long")) for text in texts]


def test_many_at_once(server: Served, texts: list[str], expected: dict[str, float]):
    requests = [[texts[(7 * i + j) % len(texts)] for j in range(1 + i % 9)] for i in range(60)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(server.ask, requests))
    for asked, answered in zip(requests, answers, strict=True):
        assert answered == pytest.approx([expected[text] for text in asked], abs=1e-5)


def test_what_is_malformed_gets_a_sentence_and_harms_nobody(server: Served):
    before = server.health()
    for body in MALFORMED:
        answer = HTTP.post(server.url, content=body)
        assert answer.status_code == 400
        assert re.fullmatch(r"[^\n]+\.", answer.json()["error"])
    half = socket.create_connection(("127.0.0.1", server.port))
    half.sendall(b"POST /get_reward HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    half.close()
    assert server.health() == before
    assert before["status"] == "ok"
    assert len(server.ask(["still there"])) == 1


def test_a_port_in_use(server: Served):
    output = run("serve-rm", [*FLAGS.split(), str(server.port)], server.folder, exit_code=2)
    assert output == f"--host 127.0.0.1 --port {server.port}: port {server.port} is in use; {REMEDY}.\n"


def test_sigterm_in_the_middle_of_work(server: Served):
    """What takes too long is left, the process is gone within seconds, and so is its port."""
    ends: list[str] = []

    def ask() -> None:
        try:
            ends.append(str(HTTP.post(server.url, json={"query": ["x" * 90] * 50_000}).status_code))
        except httpx.RemoteProtocolError:
            ends.append("gone")

    asking = threading.Thread(target=ask)
    asking.start()
    server.job.until(lambda: server.health()["waiting"] > 0, "work")
    server.job.driver.send_signal(signal.SIGTERM)
    start = time.monotonic()
    output = server.job.wait(0, seconds=30)
    assert time.monotonic() - start < 10
    asking.join(30)
    assert ends == ["gone"], "so many could not be scored in time"
    assert re.search(r"stopping within 5 s; \d+ texts are waiting", output)
    assert "Traceback" not in output
    with pytest.raises(httpx.ConnectError):
        server.health()
