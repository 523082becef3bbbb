"""Times: FLOPs as torch counts them, rooflines that follow what they are made of, shares learned from a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen3Config

from openrlhf_ext.config import parse, write_yaml
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.arithmetic import arithmetic_of
from openrlhf_ext.plan.calibrate import PLAN_FILE, efficiency_of_run
from openrlhf_ext.plan.cards import CARDS, card_named
from openrlhf_ext.plan.describe import as_json
from openrlhf_ext.plan.flops import attention_flops, forward_flops, train_flops
from openrlhf_ext.plan.make import make_plan
from openrlhf_ext.plan.setup import setup_of
from openrlhf_ext.plan.shapes import read_shape
from openrlhf_ext.plan.speed import EFFICIENCY, roofline, time_of
from openrlhf_ext.plan.types import DataSize, Hardware, ModelRun, Setup, Time

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 500,
    "tie_word_embeddings": False,
}
RL = (
    "--actor.model_name_or_path Qwen/Qwen3-4B --reward.remote_url reward.py --rollout.batch_size 64 "
    "--train.batch_size 16 --train.micro_batch_size 4 --rollout.micro_batch_size 4 --train.colocate_all "
    "--algo.advantage.estimator reinforce --data.max_len 4096 --rollout.max_new_tokens 2048 --ds.zero_stage 3 "
    "--vllm.gpu_memory_utilization 0.4"
)
PM = (
    "--model.model_name_or_path Qwen/Qwen3-4B --train.batch_size 128 --train.micro_batch_size 2 --ds.zero_stage 3 "
    "--data.max_len 2048 --model.gradient_checkpointing_enable"
)


def of(command: Any, flags: str, hardware: Hardware, data: DataSize) -> tuple[Setup, Time]:
    parsed = parse(command, flags.split(), planning=True)
    setup = setup_of(command, parsed.config, parsed.explicit, hardware, data)
    return setup, time_of(setup, arithmetic_of(setup))


def tokens(rows: int = 638, mean: float = 3000.0, **more: Any) -> DataSize:
    return DataSize(rows, mean, 4096, how="given", **more)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [8, 33])
def test_flops_are_those_that_torch_counts(batch: int, length: int) -> None:
    """Exactly in the matrices; in attention torch counts the whole square, of which a causal mask needs half."""
    model = AutoModelForCausalLM.from_config(Qwen3Config(**SIZES), attn_implementation="eager")
    shape = read_shape(Qwen3Config(**SIZES).to_dict(), "tiny")
    run = ModelRun("model", shape, "causal_lm", True, 1, "model")
    ids = torch.zeros(batch, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        logits = model(ids, use_cache=False).logits
    forward = _by_kind(counter)
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    backward = _by_kind(counter)
    half = attention_flops(shape, batch, length)
    assert forward["matrices"] == forward_flops(run, batch, length, length) - half
    assert forward["attention"] == pytest.approx(2 * half, rel=2e-3)  # and the angles of positions
    head = 2 * batch * length * shape.hidden * shape.vocab  # our chunks of it are run once more
    assert forward["matrices"] + backward["matrices"] == train_flops(run, batch, length, length) - 3 * half - head


def _by_kind(counter: FlopCounterMode) -> dict[str, int]:
    counts = counter.get_flop_counts()["Global"]
    attention = sum(count for name, count in counts.items() if "attention" in str(name) or "bmm" in str(name))
    return {"attention": attention, "matrices": sum(counts.values()) - attention}


def test_full_training_is_six_flops_a_parameter_and_token_and_eight_with_checkpointing() -> None:
    setup, _ = of("rm", PM, Hardware(card_named("4090"), 8), tokens(mean=260.0))
    run = setup.models[0]
    matrices = forward_flops(run, 1, 1, 0) / 2 - attention_flops(run.shape, 1, 1) / 2
    assert 3.4e9 < matrices < 3.7e9  # Qwen3-4B without its embeddings
    for checkpointing, each in ((False, 6), (True, 8)):
        of_run = replace(run, gradient_checkpointing=checkpointing)
        got = train_flops(of_run, 100, 10, 0) - attention_flops(run.shape, 100, 10) * (4 if checkpointing else 3)
        assert got == pytest.approx(each * matrices * 1000)


def test_adapters_save_the_gradients_of_the_weights() -> None:
    base = "--model.model_name_or_path Qwen/Qwen3-4B --train.batch_size 8"
    whole = of("dpo", base, Hardware(card_named("h100"), 1), tokens())[0].models[0]
    adapters = of("dpo", f"{base} --ds.lora.rank 16", Hardware(card_named("h100"), 1), tokens())[0].models[0]
    share = train_flops(adapters, 1, 1000, 0) / train_flops(whole, 1, 1000, 0)
    assert 2 / 3 < share < 0.72


def test_a_colocated_rl_step_is_of_all_its_parts() -> None:
    flags = f"{RL} --ds.enable_sleep --vllm.enable_sleep"
    setup, time = of("rl", flags, Hardware(card_named("RTX PRO 6000"), 1), tokens(mean_prompt_tokens=1000.0))
    assert set(time.parts) == {"generate", "score", "infer", "update", "publish", "save"}
    assert time.parts["score"] == 0  # a plugin's time is not the GPU's
    assert time.step_seconds == pytest.approx(sum(time.parts.values()))
    assert time.total_seconds == pytest.approx(time.step_seconds * 638 / 64)
    assert time.efficiency == {part: EFFICIENCY[part] for part in time.parts}
    # 64 answers at once, the longest of 2,048 tokens, each step reading 8.04 GB of weights at 1,792 GB/s.
    least = 2048 * 8.04e9 / 1792e9
    assert roofline(setup)["generate"] > least
    awake = of("rl", RL, Hardware(card_named("RTX PRO 6000"), 1), tokens(mean_prompt_tokens=1000.0))[1]
    assert awake.parts["infer"] < time.parts["infer"] and awake.parts["generate"] < time.parts["generate"]


def test_generation_ahead_of_training_hides_the_shorter_of_the_two() -> None:
    flags = RL.replace("--train.colocate_all", "--vllm.num_engines 1 --actor.num_gpus_per_node 1")
    hardware = Hardware(card_named("h100"), 4)
    apart = of("rl", flags, hardware, tokens())[1]
    ahead = of("rl", f"{flags} --train.async_enable", hardware, tokens())[1]
    hidden = min(apart.parts["generate"] + apart.parts["score"], apart.parts["infer"] + apart.parts["update"])
    assert ahead.step_seconds == pytest.approx(apart.step_seconds - hidden)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(sorted(CARDS)),
    st.floats(1.1, 4.0),
    st.sampled_from(["flops", "memory_bandwidth", "link_bandwidth"]),
)
def test_a_faster_card_is_never_slower(name: str, times: float, what: str) -> None:
    card = CARDS[name]
    faster = replace(card, **{what: getattr(card, what) * times})
    for command, flags, data in (("rl", RL, tokens()), ("rm", PM, tokens(mean=260.0, eval_rows=100))):
        slow, fast = (of(command, flags, Hardware(each, 8), data)[1] for each in (card, faster))
        assert fast.step_seconds <= slow.step_seconds * (1 + 1e-12)


def test_more_tokens_and_fewer_gpus_take_longer() -> None:
    def seconds(gpus: int, mean: float) -> float:
        flags = f"{PM} --model.num_gpus_per_node {gpus}"
        return of("rm", flags, Hardware(card_named("a100 80gb sxm"), gpus), tokens(mean=mean))[1].step_seconds

    assert seconds(8, 260.0) < seconds(8, 520.0) < seconds(4, 520.0) < seconds(1, 520.0)


def test_offload_and_the_network_cost_time() -> None:
    flags = f"{PM} --model.num_gpus_per_node 8"
    card = card_named("a100 80gb sxm")
    inside = of("rm", flags, Hardware(card, 8), tokens(mean=260.0))[1]
    offloaded = of("rm", f"{flags} --ds.adam_offload", Hardware(card, 8), tokens(mean=260.0))[1]
    across = of("rm", flags.replace("8", "8", 1), Hardware(card, 4, nodes=2), tokens(mean=260.0))[1]
    assert inside.parts["update"] < offloaded.parts["update"]
    assert inside.parts["update"] < across.parts["update"]


def test_evaluation_and_checkpoints_are_spread_over_the_steps() -> None:
    flags = f"{PM} --model.num_gpus_per_node 8 --eval.dataset x --eval.steps 1"
    hardware, data = Hardware(card_named("h100"), 8), tokens(rows=1280, mean=260.0, eval_rows=8550)
    every = of("rm", flags, hardware, data)[1]
    rare = of("rm", flags.replace("--eval.steps 1", "--eval.steps 5"), hardware, data)[1]
    assert every.parts["evaluate"] / rare.parts["evaluate"] == pytest.approx(11 / 3)  # before, and after 10 or 2 steps


def test_without_rows_there_is_the_time_of_a_step_at_most() -> None:
    _, time = of("rm", PM, Hardware(card_named("h100"), 1), DataSize(None, None, 2048))
    assert time.total_seconds is None
    assert time.step_seconds > of("rm", PM, Hardware(card_named("h100"), 1), tokens(mean=500.0))[1].step_seconds


def test_a_cpu_has_times_too() -> None:
    flags = "--model.model_name_or_path Qwen/Qwen3-0.6B --train.batch_size 8 --ds.param_dtype fp32"
    _, time = of("sft", flags, Hardware(None, 0), tokens(mean=100.0))
    assert time.total_seconds is not None and 1 < time.step_seconds < 1000
    _, half = of("sft", flags, Hardware(None, 0), tokens(mean=50.0))
    assert half.step_seconds < time.step_seconds


# --- shares learned from a run --------------------------------------------------------------


def finished(folder: Path, command: Any, flags: str, lines: list[dict[str, float]]) -> Path:
    folder.mkdir(exist_ok=True)
    write_yaml(parse(command, flags.split(), planning=True).config, folder / "config.yaml")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "torn')
    return folder


@pytest.mark.parametrize(("command", "flags"), [("rm", PM), ("rl", RL)])
def test_a_run_at_some_share_of_the_roofline_tells_it(tmp_path: Path, command: Any, flags: str) -> None:
    """Lines of one step and of two, the first (slow) one left out; then a plan by these shares takes as long."""
    hardware = Hardware(card_named("h100"), 1)
    data = tokens(rows=64 * 9, mean=2000.0, mean_prompt_tokens=800.0) if command == "rl" else tokens(mean=260.0)
    setup, _ = of(command, flags, hardware, data)
    ideal = {part: seconds for part, seconds in roofline(setup).items() if seconds and part != "save"}
    spent = {part: seconds / (0.1 + 0.05 * index) for index, (part, seconds) in enumerate(ideal.items())}
    sequences = 64 if command == "rl" else 256
    mean = 2000.0 if command == "rl" else 260.0

    def line(step: int, steps: int, slowness: float = 1.0) -> dict[str, float]:
        seconds = {f"seconds/{part}": value * steps * slowness for part, value in spent.items()}
        rate = {"tokens_per_second/update": sequences * mean * steps / seconds["seconds/update"]}
        if command == "rl":
            rate["tokens_per_second/generate"] = sequences * 1200 * steps / seconds["seconds/generate"]
        return {"step": step, **seconds, **rate}

    folder = finished(
        tmp_path / "run", command, flags, [{"step": 0}, line(1, 1, 9.0), line(2, 1), line(4, 2), line(5, 1)]
    )
    shares = efficiency_of_run(folder, hardware)
    assert shares == pytest.approx({part: 0.1 + 0.05 * index for index, part in enumerate(ideal)})
    again = time_of(setup, arithmetic_of(setup), shares)
    assert again.calibrated
    assert {part: again.parts[part] for part in spent} == pytest.approx(spent)


def test_checkpoints_are_measured_one_by_one(tmp_path: Path) -> None:
    hardware = Hardware(card_named("h100"), 1)
    least = roofline(of("rm", PM, hardware, tokens(mean=260.0))[0])["save"]
    lines = [{"step": step, "seconds/update": 5.0, "tokens_per_second/update": 1e4} for step in range(1, 9)]
    lines[4]["seconds/save"] = least * 4
    assert efficiency_of_run(finished(tmp_path, "rm", PM, lines), hardware)["save"] == pytest.approx(0.25)


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl"])
def test_a_folder_of_no_run_is_refused(tmp_path: Path, missing: str) -> None:
    folder = finished(tmp_path, "rm", PM, [{"step": 1, "seconds/update": 1.0}])
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match=f"--calibrate .*there is no {missing} in it"):
        efficiency_of_run(folder, Hardware(card_named("h100"), 1))


@pytest.mark.parametrize(("ran_on", "said"), [(None, "was on a CPU"), ("A6000", "was on RTX A6000")])
def test_a_run_of_other_hardware_is_refused(tmp_path: Path, ran_on: str | None, said: str) -> None:
    lines = [{"step": step, "seconds/update": 5.0, "tokens_per_second/update": 1e4} for step in range(1, 4)]
    folder = finished(tmp_path, "rm", PM, lines)
    hardware = Hardware(card_named(ran_on), 1) if ran_on else Hardware(None, 0)
    command_flags = parse("rm", PM.split(), planning=True)
    plan = make_plan("rm", command_flags.config, command_flags.explicit, hardware, tokens(mean=260.0))
    (folder / PLAN_FILE).write_text(json.dumps(as_json(plan)))
    with pytest.raises(ConfigError, match=f"{said} and this plan is for H100"):
        efficiency_of_run(folder, Hardware(card_named("h100"), 1))
    assert efficiency_of_run(folder, hardware)
    (folder / PLAN_FILE).write_text("[]")
    with pytest.raises(ConfigError, match="is no plan"):
        efficiency_of_run(folder, hardware)


def test_a_run_without_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no step with an update"):
        efficiency_of_run(
            finished(tmp_path, "rm", PM, [{"step": 0, "eval/loss": 1.0}]), Hardware(card_named("h100"), 1)
        )
