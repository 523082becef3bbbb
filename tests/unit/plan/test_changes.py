"""The changes that a plan offers: each is needed, together they make the run fit, and they come quickly."""

from __future__ import annotations

import time

import pytest
from planned_runs import DPO, LORA, REINFORCE, arguments, fits, with_changes

from openrlhf_ext.plan.changes import changes_for, searched
from openrlhf_ext.plan.make import make_plan
from openrlhf_ext.plan.trial import Trials
from openrlhf_ext.plan.types import Hardware


def test_reinforce_with_a_judge_fits_96_gb_once_roles_sleep():
    plan = make_plan(*arguments("rl", REINFORCE, 96, host=256))
    assert plan.verdict == "does not fit" and not plan.memory.fits
    assert {change.flag for change in plan.changes} >= {"--vllm.enable_sleep"}
    assert all(change.same_result and change.costs for change in plan.changes)
    changed = make_plan(*arguments("rl", with_changes(REINFORCE, plan.changes), 96, host=256))
    assert changed.verdict == "fits" and changed.memory.fits and not changed.changes


@pytest.mark.parametrize("adapters", ["", LORA])
def test_dpo_of_7b_does_not_fit_12_gb_in_bf16(adapters):
    assert not fits("dpo", f"{DPO} {adapters}", 12)


@pytest.mark.parametrize("strategy", ["base", "cached"])
def test_dpo_of_7b_fits_12_gb_in_4_bits(strategy):
    assert fits("dpo", f"{DPO} {LORA} --ds.load_in_4bit --ref.strategy {strategy}", 12)


def test_dpo_of_7b_is_brought_to_12_gb_by_training_something_else():
    changes = changes_for(*arguments("dpo", DPO, 12))
    assert [change.flag for change in changes if not change.same_result][:3] == [
        "--ds.lora.rank", "--ds.lora.alpha", "--ds.load_in_4bit"
    ]  # fmt: skip
    assert fits("dpo", with_changes(DPO, changes), 12)


def test_8_bits_that_do_not_fit_become_4():
    asked = f"{DPO} {LORA} --ds.load_in_8bit"
    assert fits("dpo", asked, 12) and not fits("dpo", asked, 8)
    changes = changes_for(*arguments("dpo", asked, 8))
    assert [(change.flag, change.value) for change in changes if not change.same_result] == [
        ("--ds.load_in_4bit", "true"), ("--ds.load_in_8bit", "false")
    ]  # fmt: skip
    assert fits("dpo", with_changes(asked, changes), 8)


LARGE_ENGINE = (
    "--actor.model_name_or_path meta-llama/Llama-3.1-70B --algo.advantage.estimator reinforce --ds.zero_stage 3 "
    "--actor.num_gpus_per_node 8 --rollout.batch_size 128 --train.batch_size 128 "
    "--algo.kl.init_coef 0 --ds.lora.rank 16 --actor.gradient_checkpointing_enable"
)
QLORA_27B = (
    "--model.model_name_or_path google/medgemma-27b-text-it --ds.lora.rank 384 --ds.lora.alpha 768 --ds.load_in_4bit "
    "--adam.eight_bit --train.micro_batch_size 4 --train.batch_size 32 --data.max_len 1024 "
    "--model.gradient_checkpointing_enable"
)
CASES = [
    ("rl", REINFORCE, 96.0, {"host": 256}),
    ("rl", REINFORCE, 48.0, {"host": 256}),
    ("rl", REINFORCE.replace(" --train.colocate_all", ""), 80.0, {}),
    ("rl", f"{REINFORCE} --train.dynamic_batch_enable --train.max_tokens_per_gpu 65536", 80.0, {}),
    ("rl", REINFORCE.replace("reinforce ", "gae ", 1) + " --reward.model_name_or_path Qwen/Qwen3-4B", 141.0, {}),
    ("dpo", DPO, 12.0, {}),
    ("dpo", f"{DPO} --ref.strategy model", 80.0, {}),
    ("dpo", f"{DPO} --train.micro_batch_size 16".replace(" --model.gradient_checkpointing_enable", ""), 141.0, {}),
    ("rm", "--model.model_name_or_path Qwen/Qwen3-4B --data.max_len 2048 --train.micro_batch_size 8", 80.0, {}),
    (
        "rm",
        "--model.model_name_or_path Qwen/Qwen3-8B --model.num_gpus_per_node 4 --ds.zero_stage 1",
        48.0,
        {"count": 4},
    ),
    ("sft", "--model.model_name_or_path Qwen/Qwen3-0.6B --data.max_len 32768", 24.0, {}),
    ("rl", LARGE_ENGINE, 141.0, {"count": 16}),
    ("sft", QLORA_27B, 48.0, {"host": 128}),
    ("sft", QLORA_27B, 36.0, {"host": 16}),
]


@pytest.mark.parametrize(("command", "flags", "gigabytes", "hardware"), CASES)
def test_changes_are_enough_and_each_is_needed(command, flags, gigabytes, hardware):
    assert not fits(command, flags, gigabytes, **hardware)
    changes = changes_for(*arguments(command, flags, gigabytes, **hardware))
    assert changes
    count = max([hardware.get("count", 1)] + [int(c.value) for c in changes if c.flag.endswith("num_gpus_per_node")])
    assert fits(command, with_changes(flags, changes), gigabytes, **{**hardware, "count": count})
    search = searched(*arguments(command, flags, gigabytes, **hardware))
    for one in search.taken:
        without = search.trials.of(search.values(without=one))
        assert without is None or not without.fits, f"{one.values} is not needed"


def test_what_a_change_saves_is_missing_without_it():
    given = arguments("rl", REINFORCE, 48, host=256)
    changes = changes_for(*given)
    final = make_plan(*arguments("rl", with_changes(REINFORCE, changes), 48, host=256)).memory.gpu_peak
    for left_out in changes:
        others = tuple(change for change in changes if change is not left_out)
        peak = make_plan(*arguments("rl", with_changes(REINFORCE, others), 48, host=256)).memory.gpu_peak
        if left_out.flag == "--judge.gpu_memory_utilization":  # it takes memory: its cache held no sequence
            assert left_out.saves == 0
        else:
            assert peak - final == left_out.saves > 0


def test_what_nothing_makes_fit_says_what_is_in_the_way():
    plan = make_plan(*arguments("dpo", "--model.model_name_or_path meta-llama/Llama-3.1-70B", 4))
    assert not plan.changes
    assert plan.verdict.startswith("does not fit: with every change made a GPU still has to hold")
    assert "of 4.0 GB" in plan.verdict


def test_too_few_gpus_are_shared():
    flags = REINFORCE.replace(" --train.colocate_all", "").replace(
        " --judge.model_name_or_path google/medgemma-4b-it", ""
    )
    flags = flags.replace("Qwen3-4B", "Qwen3-0.6B")
    plan = make_plan(*arguments("rl", flags, 80))
    assert plan.verdict == "does not fit" and plan.memory.misfits
    assert plan.changes[0].flag == "--train.colocate_all"


def test_a_cache_on_a_cpu_is_made_large_enough():
    flags = "--actor.model_name_or_path Qwen/Qwen3-0.6B --algo.advantage.estimator reinforce --data.max_len 8192"
    command, config, explicit, _, data = arguments("rl", flags, 80)
    (change,) = changes_for(command, config, explicit, Hardware(None, 0, 1, 10**12), data)
    assert (change.flag, change.value) == ("--vllm.kv_cache_gb", "1")
    config = arguments("rl", with_changes(flags, (change,)), 80)[1]
    assert make_plan(command, config, explicit, Hardware(None, 0, 1, 10**12), data).memory.fits


@pytest.mark.parametrize(("command", "flags", "gigabytes", "hardware"), CASES)
def test_a_plan_with_changes_takes_under_a_second(command, flags, gigabytes, hardware):
    given = arguments(command, flags, gigabytes, **hardware)
    make_plan(*given)  # shapes are read once
    begun = time.process_time()
    search = searched(*given)
    assert time.process_time() - begun < 1.0
    assert len(search.trials.made) <= 80


def test_a_value_is_planned_once():
    trials = Trials(*arguments("dpo", DPO, 80))
    assert trials.of({"ds.logprob_chunk_size": 256}) is trials.of({"ds.logprob_chunk_size": 256})
    assert trials.of({"train.micro_batch_size": 7}) is None, "128 pairs are no multiple of it"
