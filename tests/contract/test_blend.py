"""A frozen model moves towards another's weights: the same by every sharding, kept exactly in its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_scenarios as scenarios
import pytest
import torch
from engine_scenarios import SPEC, full_weights, rows

from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.models.spec import ModelSpec

pytestmark = pytest.mark.timeout(400)

KINDS = [(0, "fp32"), (3, "fp32"), (3, "bf16")]
MIXUP = 0.9


def towards(weights: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Other weights of the same shapes."""
    random = torch.Generator().manual_seed(3)
    return [(name, torch.randn(own.shape, generator=random).to(own.dtype)) for name, own in weights.items()]


def blend_everywhere(rank: int, world_size: int, device: Any, path: Path, folder: Path) -> list[dict[str, Any]]:
    from openrlhf_ext.engine.deepspeed_engine import DeepSpeedEngine

    found = []
    for stage, dtype in KINDS:
        spec: EngineSpec = replace(SPEC, zero_stage=stage, dtype=dtype, trainable=False)
        model = ModelSpec(str(path), dtype=dtype)
        engine = DeepSpeedEngine(model, spec, device)
        before = full_weights(engine)
        engine.forward(rows(0))  # ZeRO-3 then holds what it fetched ahead
        for name, given in towards(before):  # one weight a bucket, as a small bucket has it
            engine.blend([(name, given)], MIXUP)
        after, logp = full_weights(engine), engine.forward(rows(0))
        file = folder / f"reference-{world_size}-{stage}-{dtype}"
        engine.export(file)
        again = DeepSpeedEngine(model, spec, device)
        again.load_weights(file)
        found.append({"before": before, "after": after, "logp": logp, "loaded": full_weights(again),
                      "loaded_logp": again.forward(rows(0))})  # fmt: skip
    return found


@pytest.fixture(scope="module", params=[1, 2])
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp(f"blend-{request.param}")
    scenarios.build_model(folder / "model", tied=request.param == 2)
    return scenarios.spawn(request.param, blend_everywhere, folder, folder / "model", folder)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[f"stage {s} {d}" for s, d in KINDS])
def test_every_weight_is_the_mixture_on_every_rank(answers: list[list[dict[str, Any]]], kind: int):
    for of_rank in answers:
        before, after = of_rank[kind]["before"], of_rank[kind]["after"]
        for name, given in towards(before):
            expected = (before[name].float() * (1 - MIXUP) + given.float() * MIXUP).to(before[name].dtype)
            torch.testing.assert_close(
                after[name], expected, rtol=1e-2 if KINDS[kind][1] == "bf16" else 1e-6, atol=1e-6
            )
            assert not torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[f"stage {s} {d}" for s, d in KINDS])
def test_its_files_hold_it_bit_for_bit(answers: list[list[dict[str, Any]]], kind: int):
    for of_rank in answers:
        found = of_rank[kind]
        assert found["loaded"].keys() == found["after"].keys()
        assert all(torch.equal(found["loaded"][name], found["after"][name]) for name in found["after"])
        assert torch.equal(found["loaded_logp"], found["logp"])


def test_shardings_agree(answers: list[list[dict[str, Any]]]):
    whole, sharded = answers[0][0]["after"], answers[-1][1]["after"]
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)
