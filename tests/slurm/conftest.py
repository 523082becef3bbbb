"""One cluster for all tests of this folder; without what it needs they skip and say so."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, missing

from openrlhf_ext.models.tiny import TinyShape, build_tiny_model

SHAPE = TinyShape(hidden=32, layers=2, heads=1, kv_heads=1, intermediate=64, vocab=320, max_positions=256)
WORDS = ("how", "can", "i", "help", "you", "bake", "a", "cake", "for", "nine", "guests", "without", "any", "eggs")


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's name is short
    with SlurmCluster(folder) as started:
        yield started
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def workshop(cluster: SlurmCluster) -> Path:
    """A tiny model, dialogues of hh-rlhf (of the file that HH_RLHF_ROWS names, else as it has them), prompts, and a
    reward file.
    """
    folder = cluster.folder / "work shop"
    build_tiny_model(folder / "model", SHAPE)
    rows = os.environ.get("HH_RLHF_ROWS")
    dialogues = _short_ones(Path(rows), 72) if rows else [_dialogue(number) for number in range(72)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dialogues[:64]))
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dialogues[64:]))
    prompts = [{"input": f"{WORDS[n % len(WORDS)]} {WORDS[(3 * n) % len(WORDS)]} {n}"} for n in range(16)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (folder / "reward.py").write_text(
        "def reward_func(queries, prompts, labels):\n    return [float(q.count('e')) for q in queries]\n"
    )
    return folder


def _short_ones(rows: Path, count: int) -> list[dict[str, str]]:
    """The first that the tiny model, to which a letter is a token, can read as they are."""
    pairs = (json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines())
    found = [row for row in pairs if all(len(row[name].encode()) < 240 for name in ("chosen", "rejected"))]
    assert len(found) >= count, f"{rows} has {len(found)} short dialogues"
    return found[:count]


def _dialogue(number: int) -> dict[str, str]:
    ask = " ".join(WORDS[(number + 5 * i) % len(WORDS)] for i in range(4 + number % 7))
    good = " ".join(WORDS[(2 * number + i) % len(WORDS)] for i in range(3 + number % 5))
    bad = " ".join(WORDS[(3 * number + 7 * i) % len(WORDS)] for i in range(2 + number % 6))
    opened = f"\n\nHuman: {ask}\n\nAssistant: "
    return {"chosen": opened + good, "rejected": opened + bad + " no"}
