"""A reward model asked in this process: the scores of the rows one by one, however they are cut into passes."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.device import Device
from openrlhf_ext.models.scorer import LocalScorer
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model

SHAPE = TinyShape(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=128, vocab=300, max_positions=64)
CPU = Device("cpu", 0, frozenset({"bf16"}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = build_tiny_model(tmp_path_factory.mktemp("scorer") / "model", SHAPE)
    torch.manual_seed(5)
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows():
    draw = random.Random(3)
    return [[draw.randrange(259) for _ in range(length)] for length in (5, 60, 1, 17, 17, 33, 2, 9, 50, 1)]


@pytest.fixture(scope="module")
def expected(folder, rows):
    """transformers' own backbone and head, a row at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = [model.model(torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
        return [float(model.score(each)[0]) for each in hidden]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [{"rows": 1}, {"rows": 4}, {"rows": 100}, {"max_tokens": 64}, {"max_tokens": 1000}])
def test_scores_are_those_of_the_rows_one_by_one(folder, rows, expected, size, packed):
    spec = ModelSpec(str(folder), "fp32", kind="reward", packing=packed)
    scores = LocalScorer(spec, CPU, SplitSettings(**size, packed=packed)).scores(rows)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.05, "they can be told apart"


def test_four_bits(folder, rows, expected):
    pytest.importorskip("bitsandbytes")
    spec = ModelSpec(str(folder), "fp32", kind="reward", load_in_4bit=True)
    scores = torch.tensor(LocalScorer(spec, CPU, SplitSettings(rows=4)).scores(rows))
    whole = torch.tensor(expected)
    assert float(torch.corrcoef(torch.stack([scores, whole]))[0, 1]) > 0.9
    assert not torch.allclose(scores, whole, atol=1e-5)
