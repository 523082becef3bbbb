"""`openrlhf-ext plan`: set-ups whose launch documents were wrong, each with its arithmetic, and the command itself."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from openrlhf_ext.cli.plan import main, sweep
from openrlhf_ext.errors import ConfigError, UserError
from openrlhf_ext.plan.types import Plan

SEVEN = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
QWEN3_4B = 4_022_468_096
QWEN = "--model.model_name_or_path Qwen/Qwen3-4B "


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Any:
    def planned(line: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*line.split(), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return planned


@pytest.mark.parametrize("rank", [128, 256, 384])
def test_medgemma_27b_adapters_on_the_seven_projections(plan, rank):
    hidden, ffn, heads, kv, layers = 5376, 21504, 32 * 128, 16 * 128, 62
    matrices = [
        (hidden, heads),
        (hidden, kv),
        (hidden, kv),
        (heads, hidden),
        (hidden, ffn),
        (hidden, ffn),
        (ffn, hidden),
    ]
    trained = rank * layers * sum(a + b for a, b in matrices)
    assert trained == {128: 908_132_352, 256: 1_816_264_704, 384: 2_724_397_056}[rank]
    answer = plan(
        "sft --model.model_name_or_path google/medgemma-27b-text-it --ds.load_in_4bit --device.gpu A6000 "
        f"--ds.lora.rank {rank} --ds.lora.alpha {2 * rank} --ds.lora.target_modules {SEVEN}"
    )
    assert answer["trainable_params"] == trained


@pytest.mark.parametrize(("gpus", "states"), [(8, 8.0), (16, 4.0), (4, 16.1)])
def test_qwen3_4b_full_training_is_sixteen_bytes_a_parameter(plan, gpus, states):
    answer = plan(f"sft {QWEN}--ds.zero_stage 3 --device.memory_gb 80 --train.micro_batch_size 1 --device.count {gpus}")
    assert answer["trainable_params"] == answer["total_params"] == QWEN3_4B
    assert answer["states_gb_per_gpu"] == pytest.approx(16 * QWEN3_4B / gpus / 1e9, rel=1e-3)
    assert round(answer["states_gb_per_gpu"], 1) == states


@pytest.mark.parametrize(("batch", "gpus", "full"), [(128, 8, 1256), (256, 16, 628)])
def test_hh_rlhf_steps(plan, batch, gpus, full):
    assert 160_791 // batch == full
    answer = plan(
        f"rm {QWEN}--ds.zero_stage 3 --train.micro_batch_size 2 --device.memory_gb 24 "
        f"--device.count {gpus} --train.batch_size {batch} --plan.rows 160791 --plan.mean_tokens 250"
    )
    assert answer["steps_per_epoch"] == full
    assert answer["leftover_rows"] == 160_791 - full * batch
    assert answer["steps_total"] == full + 1
    assert answer["effective_batch"] == batch


RL = "rl --actor.model_name_or_path Qwen/Qwen3-4B --algo.advantage.estimator reinforce --train.colocate_all "


def test_638_prompts_are_ten_rollout_steps_and_no_save_every_fifty(plan):
    answer = plan(
        RL + "--rollout.batch_size 64 --train.batch_size 16 --plan.rows 638 --ckpt.save_steps 50 --device.memory_gb 96"
    )
    assert divmod(638, 64) == (9, 62)
    assert (answer["steps_per_epoch"], answer["leftover_rows"], answer["steps_total"]) == (9, 62, 10)
    assert answer["saves"] == 1  # the end
    said = [warning["text"] for warning in answer["warnings"] if "--ckpt.save_steps 50" in warning["text"]]
    assert said and "10 steps" in said[0]
    assert plan(RL + "--rollout.batch_size 64 --train.batch_size 16 --plan.rows 638 --ckpt.save_steps 5")["saves"] == 2


COLOCATED = (
    RL + "--judge.model_name_or_path google/medgemma-4b-it --vllm.gpu_memory_utilization 0.75 --rollout.batch_size 64 "
    "--train.batch_size 16 --train.micro_batch_size 4 --rollout.micro_batch_size 4 --data.max_len 4096 "
    "--rollout.max_new_tokens 2048 --ds.zero_stage 3 --plan.rows 638 --device.memory_gb 96 --device.count 1 "
)


def test_policy_judge_and_engine_on_one_96_gb_card_take_turns_or_do_not_fit(plan):
    answer = plan(COLOCATED)
    assert not answer["fits"] and answer["verdict"].startswith("does not fit")
    changes = {change["flag"]: change["value"] for change in answer["changes"]}
    assert "--vllm.enable_sleep" in changes and "--ds.enable_sleep" in changes
    with_them = plan(COLOCATED + " ".join(f"{flag} {value}" for flag, value in changes.items()))
    assert with_them["fits"] and with_them["verdict"] == "fits"
    assert with_them["gpu_peak_gb"] <= 96


DPO = (
    "dpo --model.model_name_or_path mistralai/Mistral-7B-v0.1 --data.max_len 1024 --train.batch_size 8 "
    "--train.micro_batch_size 1 --model.gradient_checkpointing_enable --device.memory_gb 12 --ref.strategy cached "
)


@pytest.mark.parametrize(
    ("flags", "fits"),
    [
        ("", False),
        ("--ds.lora.rank 16 --ds.lora.alpha 32", False),
        ("--ds.lora.rank 16 --ds.lora.alpha 32 --ds.load_in_4bit", True),
    ],
)
def test_dpo_of_seven_billion_on_twelve_gb(plan, flags, fits):
    answer = plan(DPO + flags)
    assert answer["fits"] is fits
    weights = 7_241_732_096 * 2 / 1e9
    if not fits:
        assert answer["gpu_peak_gb"] > weights > 12
        assert answer["changes"]
    else:
        assert 4 < answer["gpu_peak_gb"] < 12


def test_training_that_goes_on_from_adapters_trains_those_and_needs_no_rank(plan, tmp_path):
    stored = {"base_model_name_or_path": "Qwen/Qwen3-0.6B", "r": 8, "lora_alpha": 16, "target_modules": SEVEN.split()}
    (tmp_path / "adapter_config.json").write_text(json.dumps(stored))
    asked = "--train.batch_size 8 --train.micro_batch_size 1 --device.gpu 3090 --ds.load_in_4bit"
    answer = plan(f"dpo --model.model_name_or_path {tmp_path} {asked}")
    adapters = f"--ds.lora.rank 8 --ds.lora.target_modules {SEVEN}"
    fresh = plan(f"dpo --model.model_name_or_path Qwen/Qwen3-0.6B {asked} {adapters}")
    assert answer["trainable_params"] == fresh["trainable_params"] == 8 * 28 * 22528
    assert answer["gpu_peak_gb"] == pytest.approx(fresh["gpu_peak_gb"], rel=0.05)


def test_every_key_that_programs_read_is_there(plan):
    answer = plan("sft --model.model_name_or_path Qwen/Qwen3-0.6B --device.gpu H100 --plan.rows 1000")
    keys = """fits verdict trainable_params total_params effective_batch steps_per_epoch leftover_rows steps_total saves
    evals gpu_peak_gb host_peak_gb states_gb_per_gpu phases terms warnings changes"""
    assert set(keys.split()) <= answer.keys()
    peak = max(answer["phases"], key=lambda phase: phase["gpu_gb"])
    there = [term for term in answer["terms"] if term["where"] == "gpu" and peak["phase"] in term["phases"]]
    assert sum(term["gb"] for term in there) == pytest.approx(answer["gpu_peak_gb"], abs=0.02)


def test_a_sweep_is_a_line_for_each_value_and_says_where_there_is_no_plan():
    flags = f"{QWEN}--ds.zero_stage 3 --train.micro_batch_size 2 --device.gpu 4090"
    lines = sweep("rm", flags.split(), ["device.count=4,8,16", "train.batch_size=64,128,100"])
    four, eight, refused = (made for _, made in lines)
    assert isinstance(four, Plan) and isinstance(eight, Plan) and isinstance(refused, UserError)
    assert (four.arithmetic.effective_batch, eight.arithmetic.effective_batch) == (64, 128)
    assert four.states_bytes == pytest.approx(2 * eight.states_bytes, rel=1e-3)
    assert "--train.batch_size 100" in str(refused)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "there is no such command to plan; name one of rl, sft, rm, dpo"),
        ("sftt", "did you mean sft"),
        ("sft", "--model.model_name_or_path: it is required"),
        (f"sft {QWEN}--device.gpu H100 --device.memory_gb 80", "leave one out"),
        (f"sft {QWEN}--device.gpu H1000", "H100"),
        ("sft --model.model_name_or_path Qwen/Qwen3-4C --device.gpu H100", "qwen/qwen3-4b"),
        (f"sft {QWEN}--device.type cpu --device.gpu H100", "one of the two"),
        (f"sft {QWEN}--plan.sweep device.count", "write FLAG=a,b,c"),
        (f"sft {QWEN}--plan.sweep device.counts=1,2", "did you mean device.count"),
        (
            f"sft {QWEN}--plan.sweep device.count=1,2 train.batch_size=8",
            "the same number of values",
        ),
        (f"sft {QWEN}--plan.row 5", "did you mean"),
        (
            f"sft {QWEN}--device.gpu H100 --device.count 4 --model.num_gpus_per_node 8",
            "leave one of the two out",
        ),
        ("sft --preset mistral-7b-dpo-12gb", "it is for dpo, not for sft"),
        ("dpo --preset mistral-7b", "did you mean mistral-7b-dpo-12gb"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(line, sentence):
    with pytest.raises(ConfigError, match=sentence):
        main(line.split())


def test_it_needs_neither_torch_nor_ray_nor_the_hub():
    code = (
        "import sys; from openrlhf_ext.cli.main import dispatch; "
        f"dispatch({('plan ' + COLOCATED + '--json').split()!r}); "
        "heavy = {'torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'numpy', 'pyarrow', 'httpx'}; "
        "heavy &= set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fits"] is False


def test_roles_are_drawn_node_by_node(capsys: pytest.CaptureFixture[str]):
    line = (
        "rl --actor.model_name_or_path Qwen/Qwen3-0.6B --reward.remote_url http://r "
        "--algo.advantage.estimator reinforce "
        "--actor.num_nodes 1 --actor.num_gpus_per_node 6 --ref.num_gpus_per_node 2 --vllm.num_engines 2 "
        "--vllm.tensor_parallel_size 4 --rollout.batch_size 96 --train.batch_size 96 --plan.rows 960 "
        "--device.gpu H100 --device.count 8 --nodes 2"
    )
    assert main(line.split()) == 0
    shown = capsys.readouterr().out
    drawn = [shown_line.rstrip() for shown_line in shown.partition("who sits where")[2].splitlines()[1:6]]
    assert drawn == [
        " node    GPU  roles",
        " node 1  0-5  policy 0-5",
        "         6-7  reference 0-1",
        " node 2  0-3  engines 0",
        "         4-7  engines 1",
    ]
    assert main(line.replace("--vllm.num_engines 2", "--vllm.num_engines 3").split()) == 0
    assert "and there are 16: lower" in " ".join(capsys.readouterr().out.split())
