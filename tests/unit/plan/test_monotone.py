"""Verdicts go one way: more memory never turns fits into does not fit, more work never lowers the peak."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from openrlhf_ext.config import COMMANDS, replaced
from openrlhf_ext.config.rules import broken_rules
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.auto import RESERVE, chosen
from openrlhf_ext.plan.cards import card_of_size
from openrlhf_ext.plan.changes import searched
from openrlhf_ext.plan.memory import memory_of
from openrlhf_ext.plan.setup import setup_of
from openrlhf_ext.plan.types import DataSize, Hardware, Memory

MODELS = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", "google/gemma-2-2b", "mistralai/Mistral-7B-v0.1")
SLOW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])
ROUNDING = 1 << 20
CHOOSABLE = (
    "train.micro_batch_size",
    "ds.logprob_chunk_size",
    "ds.adam_offload",
    "actor.gradient_checkpointing_enable",
    "model.gradient_checkpointing_enable",
    "vllm.gpu_memory_utilization",
    "vllm.enable_sleep",
    "ds.enable_sleep",
)


@st.composite
def runs(draw):
    """A command and values of its flags that no rule refuses."""
    command = draw(st.sampled_from(tuple(COMMANDS)))
    section = "actor" if command == "rl" else "model"
    rank = draw(st.sampled_from((0, 16)))
    bits = draw(st.sampled_from((None, 4, 8))) if rank else None
    values = {
        f"{section}.model_name_or_path": draw(st.sampled_from(MODELS)),
        f"{section}.num_gpus_per_node": draw(st.sampled_from((1, 2, 8))),
        f"{section}.gradient_checkpointing_enable": draw(st.booleans()),
        "ds.zero_stage": draw(st.sampled_from((0, 1, 2, 3))),
        "ds.param_dtype": draw(st.sampled_from(("bf16", "fp32"))),
        "ds.packing_samples": draw(st.booleans()),
        "ds.attn_implementation": draw(st.sampled_from(("sdpa", "flash_attention_2"))),
        "ds.adam_offload": draw(st.booleans()),
        "ds.logprob_chunk_size": draw(st.sampled_from((256, 1024))),
        "ds.lora.rank": rank,
        "ds.load_in_4bit": bits == 4,
        "ds.load_in_8bit": bits == 8,
        "train.batch_size": 256,
        "train.micro_batch_size": draw(st.sampled_from((1, 2, 4))),
        "data.max_len": draw(st.sampled_from((512, 2048))),
    }
    if command == "rl":
        share = draw(st.booleans())
        values |= {
            "rollout.batch_size": 256,
            "algo.advantage.estimator": draw(st.sampled_from(("gae", "reinforce"))),
            "train.colocate_all": share,
            "vllm.enable_sleep": share and draw(st.booleans()),
            "ds.enable_sleep": share and draw(st.booleans()),
            "vllm.gpu_memory_utilization": draw(st.sampled_from((0.3, 0.6, 0.9))),
            "ref.offload": draw(st.booleans()),
            "rollout.micro_batch_size": draw(st.sampled_from((1, 4))),
        }
    if command == "dpo":
        values["ref.strategy"] = draw(st.sampled_from(("auto", "cached", "model", "offloaded")))
    config = replaced(COMMANDS[command](), values)
    assume(not [item for item in broken_rules(config, frozenset(values)) if not item.plannable])
    return command, config, frozenset(values)


def planned(command, config, explicit, gigabytes: float = 80.0, host: int | None = None) -> Memory:
    hardware = Hardware(card_of_size(gigabytes), 16, 1, host)
    data = DataSize(1000, None, config.data.max_len, how="given")
    return memory_of(setup_of(command, config, explicit, hardware, data))


@SLOW
@given(runs(), st.floats(6, 200), st.floats(0.1, 200))
def test_more_gpu_memory_keeps_what_fits(run, gigabytes, more):
    if planned(*run, gigabytes).fits:
        assert planned(*run, gigabytes + more).fits


@SLOW
@given(runs(), st.floats(0.5, 100), st.floats(0, 300))
def test_more_host_memory_keeps_what_fits(run, gigabytes, more):
    if planned(*run, 192.0, int(gigabytes * 1e9)).fits:
        assert planned(*run, 192.0, int((gigabytes + more) * 1e9)).fits


@SLOW
@given(runs())
def test_a_larger_micro_batch_never_lowers_the_peak(run):
    """As long as there are several in a step: the only one has no gradients to be added to."""
    command, config, explicit = run
    larger = replaced(config, {"train.micro_batch_size": 2 * config.train.micro_batch_size})
    assume(not [item for item in broken_rules(larger, explicit) if not item.plannable])
    assert planned(command, larger, explicit).gpu_peak >= planned(*run).gpu_peak


@SLOW
@given(runs())
def test_longer_rows_never_lower_the_peak(run):
    command, config, explicit = run
    longer = replaced(config, {"data.max_len": 2 * config.data.max_len})
    assert planned(command, longer, explicit).gpu_peak >= planned(*run).gpu_peak


@SLOW
@given(runs())
def test_checkpointing_never_raises_the_peak(run):
    command, config, explicit = run
    path = f"{'actor' if command == 'rl' else 'model'}.gradient_checkpointing_enable"
    without, with_it = (planned(command, replaced(config, {path: on}), explicit).gpu_peak for on in (False, True))
    assert with_it <= without + ROUNDING


@SLOW
@given(runs(), st.sampled_from((24.0, 48.0, 96.0)), st.sets(st.sampled_from(CHOOSABLE)))
def test_what_auto_chooses_fits_or_is_refused(run, gigabytes, kept):
    command, config, explicit = run
    explicit = (explicit - set(CHOOSABLE)) | kept
    hardware = Hardware(card_of_size(gigabytes), 2, 1, 512 * 10**9)
    data = DataSize(1000, None, config.data.max_len, how="given")
    try:
        changed, changes = chosen(command, config, explicit, hardware, data)
    except ConfigError:
        return
    memory = memory_of(setup_of(command, changed, explicit, hardware, data))
    assert memory.fits and memory.gpu_peak <= (1 - RESERVE) * memory.gpu_limit
    assert not explicit & {change.flag.removeprefix("--") for change in changes}
    assert changed.train.batch_size == config.train.batch_size


@SLOW
@given(runs(), st.sampled_from((12.0, 24.0, 48.0, 96.0)), st.sampled_from((64, 512)))
def test_changes_make_it_fit_where_there_are_any(run, gigabytes, host):
    command, config, explicit = run
    hardware = Hardware(card_of_size(gigabytes), 2, 1, host * 10**9)
    data = DataSize(1000, None, config.data.max_len, how="given")
    search = searched(command, config, explicit, hardware, data)
    if not search.fits:
        return
    values = search.values()
    changed = replaced(config, values)
    gpus = max([hardware.count, *(value for path, value in values.items() if path.endswith("num_gpus_per_node"))])
    setup = setup_of(command, changed, explicit | values.keys(), replace(hardware, count=gpus), data)
    assert memory_of(setup).fits
    assert len(search.changes()) == len(values)
