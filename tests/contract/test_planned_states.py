"""What the planner says an engine keeps is what it keeps: bytes of the live tensors of real engines on two ranks."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_scenarios as scenarios
import pytest
import torch
from engine_scenarios import SPEC, Weighted, denominators, engine_of, micro_batches, rows
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from openrlhf_ext.device import Device
from openrlhf_ext.engine.deepspeed_config import effective_stage
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.models.spec import LoraSpec
from openrlhf_ext.plan import gathered, states
from openrlhf_ext.plan.shapes import find_shape
from openrlhf_ext.plan.types import Lora, ModelRun

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

RANKS = 2
LORA, NF4 = {"lora": LoraSpec(rank=4, alpha=8)}, {"load_in_4bit": True}
INT8 = {"load_in_8bit": True}
FROZEN: dict[str, Any] = {"trainable": False, "dtype": "bf16"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{f"stage {stage}": ({"zero_stage": stage}, {}) for stage in (0, 1, 2, 3)},
    **{f"stage {stage}, bf16": ({"zero_stage": stage, "dtype": "bf16"}, {}) for stage in (1, 2, 3)},
    **{f"stage {stage}, offload": ({"zero_stage": stage, "adam_offload": True}, {}) for stage in (1, 3)},
    "stage 2, bf16, offload": ({"zero_stage": 2, "dtype": "bf16", "adam_offload": True}, {}),
    "stage 3, bf16, float32 sums": ({"zero_stage": 3, "dtype": "bf16", "grad_accum_dtype": "fp32"}, {}),
    "stage 2, bf16, float32 sums": ({"zero_stage": 2, "dtype": "bf16", "grad_accum_dtype": "fp32"}, {}),
    **{f"stage {stage}, adapters": ({"zero_stage": stage}, LORA) for stage in (0, 2, 3)},
    "stage 3, bf16, adapters": ({"zero_stage": 3, "dtype": "bf16"}, LORA),
    "stage 0, adapters on 4 bits": ({"zero_stage": 0}, LORA | NF4),
    "stage 2, bf16, adapters on 4 bits": ({"zero_stage": 2, "dtype": "bf16"}, LORA | NF4),
    "stage 0, adapters on 8 bits": ({"zero_stage": 0}, LORA | INT8),
    "stage 2, bf16, adapters on 8 bits": ({"zero_stage": 2, "dtype": "bf16"}, LORA | INT8),
    "stage 0, 8 bits": ({"zero_stage": 0, "eight_bit": True}, {}),
    **{f"stage {n}, bf16, 8 bits": ({"zero_stage": n, "dtype": "bf16", "eight_bit": True}, {}) for n in (1, 2, 3)},
    "frozen": (FROZEN, {}),
    "frozen, sharded": (FROZEN | {"zero_stage": 3}, {}),
    "frozen, offload": (FROZEN | {"param_offload": True}, {}),
    "frozen value model": (FROZEN, {"kind": "value"}),
}
GATHERING: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, int, int]]] = {
    "some": ({}, {}, (1, 60_000, 150_000)),
    "few at a time": ({}, {}, (30_000, 100_000, 90_000)),
    "checkpointing": ({}, {"gradient_checkpointing": True}, (0, 150_000, 10**9)),
    "checkpointing, ahead": ({}, {"gradient_checkpointing": True}, (5_000, 60_000, 120_000)),
    "adapters": ({}, {"lora": LoraSpec(rank=16, alpha=8)}, (5_000, 60_000, 150_000)),
    "frozen": ({"trainable": False}, {}, (20_000, 150_000, 10**9)),
}
"""Sharded engines with their limits on prefetch, reuse and live parameters, as small as the model is."""
APART = ("ZeRO-3", "gradient bucket")
"""Terms that are compared by themselves."""


def build(folder: Path) -> None:
    """A model with sizes that two ranks do not share evenly, and with tensors on both sides of ZeRO-3's threshold."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=509, hidden_size=96, intermediate_size=190, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(509)}, unk_token="w3"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w2").save_pretrained(folder)


def storages() -> dict[int, Any]:
    """The distinct memory of all tensors, by its address."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), Tensor) and t.device.type == "cpu"]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    return {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}


def held(engine: Any, before: dict[int, Any]) -> dict[str, int]:
    """Bytes that came after `before`: DeepSpeed's bucket, weights that are whole, everything else."""
    sizes = {at: storage.nbytes() for at, storage in storages().items() if at not in before}
    sharded = [p for p in engine.model.parameters() if hasattr(p, "ds_tensor")]
    whole = {p.data.untyped_storage().data_ptr() for p in sharded} & sizes.keys()
    whole -= {p.ds_tensor.untyped_storage().data_ptr() for p in sharded}
    bucket = {at for at, size in sizes.items() if size in (2 * states.BUCKET, 4 * states.BUCKET)}
    parts = {"whole": whole, "bucket": bucket, "rest": sizes.keys() - whole - bucket}
    return {name: sum(sizes[at] for at in part) for name, part in parts.items()}


def every_case(rank: int, world_size: int, device: Device, path: Path) -> dict[str, Any]:
    answer = {name: moments(path, device, replace(SPEC, **spec), model) for name, (spec, model) in CASES.items()}
    answer["gathered"] = {name: gathered_by(path, device, name) for name in GATHERING}
    engine = engine_of(path, device, replace(SPEC, zero_stage=3, trainable=False))
    micro = micro_batches(rows(0), engine.rank, engine.world_size)[0]
    return answer | {"asked again": [engine.forward(micro) for _ in range(4)]}


def gathered_by(path: Path, device: Device, name: str) -> int:
    """The most numbers that were whole at a time in three steps, small weights not counted."""
    from openrlhf_ext.engine import deepspeed_engine

    fields, model, limits = GATHERING[name]
    with pytest.MonkeyPatch.context() as patch:
        plain = deepspeed_engine.deepspeed_config

        def limited(*args: Any, **kwargs: Any) -> dict[str, Any]:
            config = plain(*args, **kwargs)
            config["zero_optimization"]["stage3_allgather_sequential"] = False  # as on a GPU: it turns prefetch off
            names = ("stage3_prefetch_bucket_size", "stage3_max_reuse_distance", "stage3_max_live_parameters")
            config["zero_optimization"] |= dict(zip(names, limits, strict=True))
            return config

        patch.setattr(deepspeed_engine, "deepspeed_config", limited)
        engine = engine_of(path, device, replace(SPEC, zero_stage=3, **fields), **model)
    offload = engine._runner.optimizer.parameter_offload if fields.get("trainable", True) else engine._runner.optimizer
    coordinator, most = offload.get_param_coordinator(), [0]
    fetch = coordinator.fetch_sub_module
    large = [p for p in engine.model.parameters() if not p.ds_persist]

    def watched(*args: Any, **kwargs: Any) -> None:
        fetch(*args, **kwargs)
        most[0] = max(most[0], sum(p.ds_numel for p in large if p.ds_status.name != "NOT_AVAILABLE"))

    coordinator.fetch_sub_module = watched
    micros = micro_batches(rows(0), engine.rank, engine.world_size)
    for _ in range(3):
        if engine.spec.trainable:
            engine.forward_backward(micros[0], Weighted(), denominators(rows(0)))
        else:
            engine.forward(micros[0])
    return most[0]


def moments(path: Path, device: Device, spec: EngineSpec, model: dict[str, Any]) -> dict[str, dict[str, int]]:
    """What is there more than before the engine: after loading, between backward and step, after the step."""
    before = storages()  # kept alive, so that no new tensor gets an address of theirs
    engine = engine_of(path, device, spec, **model)
    seen = {"load": held(engine, before)}
    batch = rows(0)
    micros = micro_batches(batch, engine.rank, engine.world_size)
    if spec.trainable:
        for micro in micros:
            engine.forward_backward(micro, Weighted(), denominators(batch))
        seen["train"] = held(engine, before)
        engine.step()
    else:
        engine.forward(micros[0])
    return seen | {"publish": held(engine, before)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    build(folder / "model")
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path) -> list[dict[str, Any]]:
    return scenarios.spawn(RANKS, every_case, folder, folder / "model")


def run_of(folder: Path, case: str) -> ModelRun:
    fields, model = CASES[case]
    spec = replace(SPEC, **fields)
    lora = model.get("lora")
    return ModelRun(
        role="policy",
        shape=find_shape(str(folder / "model")),
        kind=model.get("kind", "causal_lm"),
        trainable=spec.trainable,
        ranks=RANKS,
        pool="all",
        dtype=spec.dtype,
        zero_stage=effective_stage(spec),
        lora=lora and Lora(lora.rank, lora.alpha, lora.target_modules),
        load_in_4bit=model.get("load_in_4bit", False),
        load_in_8bit=model.get("load_in_8bit", False),
        eight_bit=spec.eight_bit,
        adam_offload=spec.adam_offload,
        param_offload=spec.param_offload,
        grad_accum_dtype=spec.grad_accum_dtype,
    )


def planned(run: ModelRun, moment: str) -> dict[str, int]:
    """Bytes by term, without the rounding of pinned memory that only a GPU's host has."""
    terms: dict[str, int] = {}
    for state in states._states(run):
        if moment in state.phases:
            terms[state.name] = terms.get(state.name, 0) + sum(state.tensors)
    if moment == "train":
        terms.pop("optimizer", None)  # its moments come with the first step
    return terms


@pytest.mark.parametrize("moment", ["load", "train", "publish"])
@pytest.mark.parametrize("case", CASES)
def test_states_are_what_is_held(measured: list[dict[str, Any]], folder: Path, case: str, moment: str):
    if moment not in measured[0][case]:
        pytest.skip("a frozen model is not trained")
    terms = planned(run_of(folder, case), moment)
    expected = sum(size for name, size in terms.items() if not name.startswith(APART))
    most = max(answer[case][moment]["rest"] for answer in measured)
    assert most == pytest.approx(expected, rel=0.02), terms


@pytest.mark.parametrize("case", [case for case in CASES if "stage 1" in case or "stage 3" in case])
def test_the_bucket_is_as_large_as_it_is_for_any_model(measured: list[dict[str, Any]], folder: Path, case: str):
    for moment in ("load", "train", "publish"):
        expected = planned(run_of(folder, case), moment).get("gradient bucket", 0)
        assert {answer[case][moment]["bucket"] for answer in measured} == {expected}, moment


@pytest.mark.parametrize("case", [case for case in CASES if "stage 3" in case])
def test_small_weights_are_whole_after_a_step(measured: list[dict[str, Any]], folder: Path, case: str):
    expected = planned(run_of(folder, case), "publish")["ZeRO-3 norms, biases and small adapters kept whole"]
    assert {answer[case]["publish"]["whole"] for answer in measured} == {expected}


@pytest.mark.parametrize("name", GATHERING)
def test_so_many_weights_are_whole_at_a_time(
    measured: list[dict[str, Any]], folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    fields, model, limits = GATHERING[name]
    for constant, limit in zip(("PREFETCH", "REUSE", "MOST_AHEAD"), limits, strict=True):
        monkeypatch.setattr(gathered, constant, limit)
    gathered._peak.cache_clear()
    lora = model.get("lora")
    run = replace(
        run_of(folder, "stage 3"),
        trainable=fields.get("trainable", True),
        lora=lora and Lora(lora.rank, lora.alpha),
        gradient_checkpointing=model.get("gradient_checkpointing", False),
    )
    most = gathered.most_gathered(run)
    gathered._peak.cache_clear()
    assert most == pytest.approx(max(answer["gathered"][name] for answer in measured), rel=0.02)


def test_a_sharded_frozen_model_answers_the_same_once_its_order_is_known(measured: list[dict[str, Any]]):
    for answer in measured:
        first, *later = answer["asked again"]
        assert all(torch.equal(first, again) for again in later)
