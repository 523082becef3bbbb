"""What must hold of states whatever DeepSpeed does; tests/contract/test_planned_states.py asks DeepSpeed itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import bitsandbytes
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.plan.gathered import MOST_AHEAD, PREFETCH, REUSE, most_gathered
from openrlhf_ext.plan.parameters import total_parameters, trainable_parameters
from openrlhf_ext.plan.shapes import find_shape, shipped_models
from openrlhf_ext.plan.states import BUCKET, NF4_TABLES, PHASES, STATES, state_terms, states_bytes
from openrlhf_ext.plan.types import Lora, ModelRun, Pass

AWAKE = frozenset({"load", "train", "publish"})
SMALL = find_shape("Qwen3-0.6B")


def run_of(name: str = "Qwen3-4B", **fields: Any) -> ModelRun:
    given: dict[str, Any] = {"role": "policy", "kind": "causal_lm", "trainable": True, "ranks": 8, "pool": "all"}
    return ModelRun(**{**given, "shape": find_shape(name), "zero_stage": 3, **fields})


def by_name(run: ModelRun, where: str = "gpu") -> dict[str, int]:
    sizes: dict[str, int] = {}
    for term in state_terms(run):
        if term.where == where:
            sizes[term.name] = sizes.get(term.name, 0) + term.bytes
    return sizes


@pytest.mark.parametrize(("ranks", "gb"), [(4, 16.1), (8, 8.0), (16, 4.0)])
def test_full_training_takes_16_bytes_a_parameter_over_all_ranks(ranks: int, gb: float):
    run = run_of(ranks=ranks)
    assert total_parameters(run) == 4_022_468_096
    assert states_bytes(run) * ranks == pytest.approx(16 * 4_022_468_096, rel=1e-6)
    assert round(states_bytes(run) / 1e9, 1) == gb
    parameters = 4_022_468_096 / ranks
    for name, width in {"weights": 2, "gradients": 2, "master weights": 4, "optimizer": 8}.items():
        assert by_name(run)[name] == pytest.approx(width * parameters, rel=1e-6)


@pytest.mark.parametrize(
    ("stage", "bytes_each"),
    [(1, 2 + 2 + 12 / 8), (2, 2 + (2 + 12) / 8), (3, 16 / 8)],
)
def test_each_stage_shares_one_thing_more(stage: int, bytes_each: float):
    assert states_bytes(run_of(zero_stage=stage)) == pytest.approx(bytes_each * 4_022_468_096, rel=1e-6)


def test_float32_without_zero_takes_16_bytes_on_every_rank():
    run = run_of(dtype="fp32", zero_stage=0)
    assert states_bytes(run) == 16 * 4_022_468_096
    assert "master weights" not in by_name(run)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(("dtype", "width"), [("bf16", 2), ("fp32", 4)])
def test_the_bucket_is_there_for_a_small_model_too(stage: int, dtype: Any, width: int):
    run = run_of("Qwen3-0.6B", zero_stage=stage, dtype=dtype, lora=Lora(4, 8))
    terms = [term for term in state_terms(run) if term.name == "gradient bucket"]
    assert [term.bytes for term in terms] == [width * BUCKET]
    assert terms[0].phases == (PHASES if stage == 3 else {"train"})
    doubled = by_name(replace(run, overlap_comm=True))["gradient bucket"]
    assert doubled == width * BUCKET * (1 if stage == 3 else 2)


def test_only_adapters_have_gradients_and_an_optimizer():
    run = run_of(lora=Lora(16, 32), zero_stage=2, ranks=1)
    trained = trainable_parameters(run)
    sizes = by_name(run)
    assert sizes["weights"] == 2 * 4_022_468_096
    for name, width in {"adapters": 2, "gradients": 2, "master weights": 4, "optimizer": 8}.items():
        assert sizes[name] == width * trained


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_nf4_is_what_bitsandbytes_allocates(dtype: Any):
    """One layer of each shape, quantised for real: its weight, its scales and its tables."""
    shape = replace(SMALL, hidden=96, layers=1, heads=3, kv_heads=1, head_dim=17, ffn=190, vocab=50, windows=(None,))
    sizes = by_name(run_of(shape=shape, trainable=False, zero_stage=0, load_in_4bit=True, dtype=dtype))
    numbers = {(51, 96): 1, (17, 96): 2, (96, 51): 1, (190, 96): 2, (96, 190): 1}
    packed = scales = 0
    for out_in, count in numbers.items():
        weight = bitsandbytes.nn.Params4bit(
            torch.randn(out_in), requires_grad=False, compress_statistics=True, quant_type="nf4"
        ).to("cpu")
        state = weight.quant_state
        packed += count * weight.nbytes
        scales += count * (state.absmax.nbytes + state.state2.absmax.nbytes)
        assert state.code.nbytes + state.state2.code.nbytes + state.offset.nbytes == NF4_TABLES
    assert sizes["quantised base"] == packed
    assert sizes["quantisation constants"] == scales
    whole = 50 * 96 + 2 * 96 + 96 + 2 * 17  # the tied embedding, the norms of block and end, those of queries and keys
    assert sizes["embeddings, norms and head in higher precision"] == {"bf16": 2, "fp32": 4}[dtype] * whole


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_8_bits_are_what_bitsandbytes_allocates(dtype: Any):
    """One layer of each shape, quantised for real: its weight and the scales of its rows."""
    shape = replace(SMALL, hidden=96, layers=1, heads=3, kv_heads=1, head_dim=17, ffn=190, vocab=50, windows=(None,))
    sizes = by_name(run_of(shape=shape, trainable=False, zero_stage=0, load_in_8bit=True, dtype=dtype))
    numbers = {(51, 96): 1, (17, 96): 2, (96, 51): 1, (190, 96): 2, (96, 190): 1}
    packed = scales = 0
    for out_in, count in numbers.items():
        weight = bitsandbytes.nn.Int8Params(torch.randn(out_in), requires_grad=False).to("cpu")
        packed += count * weight.nbytes
        scales += count * weight.SCB.nbytes
    assert sizes["quantised base"] == packed
    assert sizes["quantisation constants"] == scales
    whole = 50 * 96 + 2 * 96 + 96 + 2 * 17  # the tied embedding, the norms of block and end, those of queries and keys
    assert sizes["embeddings, norms and head in higher precision"] == {"bf16": 2, "fp32": 4}[dtype] * whole


def test_nf4_of_medgemma_27b():
    run = run_of("google/medgemma-27b-text-it", zero_stage=2, ranks=1, load_in_4bit=True, lora=Lora(384, 768))
    sizes = by_name(run)
    linear = 62 * 5376 * (2 * 4096 + 2 * 2048 + 3 * 21504)
    assert sizes["quantised base"] == linear // 2
    assert sizes["quantisation constants"] == pytest.approx(linear * (1 / 64 + 4 / 64 / 256), rel=1e-6)
    assert sizes["optimizer"] == 8 * 2_724_397_056


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_takes_master_weights_and_moments_to_the_host(stage: int):
    run = run_of(zero_stage=stage, adam_offload=True)
    assert not by_name(run).keys() & {"master weights", "optimizer"}
    host = by_name(run, "host")
    assert host["optimizer"] == pytest.approx(8 * 4_022_468_096 / 8, rel=1e-6)
    assert host["master weights"] >= 4 * 4_022_468_096 / 8 * (1 - 1e-6)


def test_offloaded_weights_of_a_frozen_model_are_on_the_host():
    run = run_of(trainable=False, param_offload=True)
    assert by_name(run, "host")["weights"] >= 2 * 4_022_468_096 / 8 * 0.99
    assert by_name(run).get("weights", 0) < 1e6, "norms"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_sleeping_model_is_on_the_host_and_nowhere_else(stage: int):
    dtype: Any = "fp32" if stage == 0 else "bf16"
    run = run_of(zero_stage=stage, dtype=dtype, sleeps=True, awake=AWAKE)
    terms = state_terms(run)
    assert not [term.name for term in terms if term.where == "gpu" and not term.phases <= AWAKE]
    asleep = {term.name: term.bytes for term in terms if term.where == "host"}
    awake = by_name(run)
    for name in ("weights", "optimizer"):
        # Pinned memory comes in powers of two.
        assert awake[name] <= asleep[f"{name} (asleep)"] < 2 * awake[name]
    assert awake == by_name(run_of(zero_stage=stage, dtype=dtype)), "sleep changes nothing while it is awake"


def test_pinned_memory_is_rounded_up_to_powers_of_two():
    run = run_of(sleeps=True, awake=AWAKE)
    weights = by_name(run)["weights"]
    assert by_name(run, "host")["weights (asleep)"] == 2 ** math.ceil(math.log2(weights))


def test_a_frozen_model_whole_and_sharded():
    assert states_bytes(run_of(trainable=False, zero_stage=0)) == 2 * 4_022_468_096
    assert states_bytes(run_of(trainable=False)) == pytest.approx(2 * 4_022_468_096 / 8, rel=1e-6)
    assert not {"gradients", "optimizer", "gradient bucket"} & by_name(run_of(trainable=False)).keys()


def test_one_ranks_shard_is_the_weight_itself():
    assert not [name for name in by_name(run_of(ranks=1)) if name.startswith("ZeRO-3")]


def test_live_parameters_of_a_large_model_have_a_limit():
    passes = (Pass(1, 8, 8, 8, backward=True),)
    small, large = run_of("Qwen3-0.6B", passes=passes), run_of("Llama-3.1-70B", passes=passes)
    assert most_gathered(small) == pytest.approx(total_parameters(small), rel=0.01), "all of it"
    largest = 128_256 * 8192
    assert PREFETCH < most_gathered(large) <= max(MOST_AHEAD + PREFETCH, REUSE) + 2 * largest
    assert most_gathered(run_of("Llama-3.1-70B", trainable=False)) <= most_gathered(large)


@given(
    stage=st.sampled_from([1, 2, 3]),
    ranks=st.integers(1, 32),
    lora=st.sampled_from([None, Lora(8, 16), Lora(64, 64, ("q_proj", "v_proj"))]),
    name=st.sampled_from([model["names"][0] for model in shipped_models()][:8]),
)
def test_more_ranks_never_take_more_each(stage: Any, ranks: int, lora: Lora | None, name: str):
    fewer, more = (
        run_of(name, zero_stage=stage, ranks=ranks, lora=lora),
        run_of(name, zero_stage=stage, ranks=2 * ranks, lora=lora),
    )
    assert states_bytes(more) <= states_bytes(fewer) * (1 + 1e-3)
    assert 2 * ranks * states_bytes(more) >= ranks * states_bytes(fewer) * (1 - 1e-6), "nothing is lost"


def test_terms_name_the_states_they_are():
    names = {term.name for term in state_terms(run_of(lora=Lora(8, 16), load_in_4bit=True, zero_stage=2))}
    assert names >= STATES - {"weights"}
