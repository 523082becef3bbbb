"""Each rule fires on what it forbids, stays silent otherwise, and says what to change."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from openrlhf_ext.config import COMMANDS, flags_of, parse
from openrlhf_ext.config.ranges import SCHEDULES
from openrlhf_ext.errors import ConfigError

RL = "--actor.model_name_or_path m --data.prompt_dataset d --reward.remote_url r.py --actor.num_gpus_per_node 1 "
SFT = "--model.model_name_or_path m --data.dataset d "

FORBIDDEN = [
    ("rl", "--rollout.batch_size 10 --train.batch_size 4", "--train.batch_size 4: it does not divide the 10 sequences"),
    ("rl", "--rollout.batch_size 2 --rollout.n_samples_per_prompt 2 --train.batch_size 8", "choose 2 or 4"),
    ("rl", "--train.micro_batch_size 3", "choose 126 or 129"),
    ("rl", "--train.micro_batch_size 256", "choose 256"),
    ("rl", "--actor.num_gpus_per_node 3", "no multiple of --train.micro_batch_size 1 x 3 ranks"),
    ("rl", "--algo.advantage.estimator rloo", "--rollout.n_samples_per_prompt to 2 or more"),
    ("rl", "--algo.advantage.estimator group_norm", "--rollout.n_samples_per_prompt to 2 or more"),
    ("rl", "--algo.advantage.estimator reinforce_baseline", "--rollout.n_samples_per_prompt to 2 or more"),
    ("rl", "--rollout.max_new_tokens 2048", "--data.max_len 2048 is for prompt and response together"),
    ("rl", "--ds.overlap_comm --ds.zero_stage 1", "leave it out with --ds.zero_stage 1"),
    ("rl", "--ds.attn_implementation torch_varlen", "add --ds.packing_samples"),
    ("sft", "--ckpt.save_steps 5 --ckpt.disable_ds", "add --ckpt.save_hf"),
    ("rl", "--vllm.enable_sleep", "add --train.colocate_all"),
    ("rl", "--ds.enable_sleep", "add --train.colocate_all"),
    (
        "rl",
        "--train.colocate_all --ref.num_gpus_per_node 2",
        "--ref.num_gpus_per_node 2: it shares the policy's devices; set it to 1",
    ),
    ("rl", "--train.max_tokens_per_gpu 100", "no effect without --train.dynamic_batch_enable"),
    ("rl", "--rollout.max_tokens_per_gpu 100", "no effect without --train.dynamic_batch_enable"),
    ("rl", "--ray.dashboard --ray.address auto", "a joined cluster has its own"),
    ("rl", "--reward.weights 1 2", "2 values for 1 sources in --reward.remote_url"),
    (
        "rl",
        "--reward.model_name_or_path r --reward.weights 1",
        "1 values for 2 sources in --reward.remote_url and --reward.model_name_or_path",
    ),
    ("rl", "--data.prompt_probs 0.5,0.5", "2 values for 1 sources in --data.prompt_dataset"),
    ("rl", "--ckpt.best_metric_key x", "set --eval.dataset"),
    ("rl", "--eval.steps 5", "set --eval.dataset"),
    ("sft", "--train.stop_when loss<1", "nothing is evaluated; set --eval.dataset and --eval.steps"),
    ("rl", "--train.stop_when reward>1 --eval.dataset e", "what is evaluated at the end only stops nothing"),
    ("sft", "--train.stop_when loss --eval.dataset e --eval.steps 5", "it is no condition"),
    ("sft", "--train.stop_when loss=<1 --eval.dataset e --eval.steps 5", "it is no condition"),
    ("sft", "--train.stop_when loss<one --eval.dataset e --eval.steps 5", "one is no number"),
    ("sft", "--train.stop_when loss<nan --eval.dataset e --eval.steps 5", "nan is never reached"),
    (
        "sft",
        "--train.stop_when eval_accuracy>=0.9 --eval.dataset e --eval.steps 5",
        "no evaluation of this run has that figure; there are loss, perplexity",
    ),
    ("sft", "--eval.group_by kind --eval.dataset e", "it has no effect without --eval.scorer"),
    ("rl", "--eval.group_by kind", "it has no effect without --eval.dataset"),
    ("rl", "--eval.taxonomy t.yaml --eval.dataset e", "it names subjects; give --eval.subject_column too"),
    ("sft", "--eval.scorer exact --data.output_key o", "nothing is evaluated; set --eval.dataset"),
    ("sft", "--eval.scorer exact --eval.dataset e", "the answers need a column; set --data.output_key"),
    (
        "dpo",
        "--eval.scorer exact --eval.dataset e --eval.max_new_tokens 64",
        "the prompts need a column; set --data.prompt_key",
    ),
    (
        "sft",
        "--eval.scorer judge --eval.dataset e --data.output_key o",
        "a run scores its answers by a rule, one of exact",
    ),
    (
        "sft",
        "--eval.scorer exact --eval.dataset e --data.output_key o --ds.zero_stage 3",
        "a model whose parameters are sharded (stage 3) would gather them for every token",
    ),
    (
        "sft",
        "--eval.scorer exact --eval.dataset e --data.output_key o --eval.n_samples_per_prompt 2",
        "at temperature 0 all of them are alike",
    ),
    (
        "sft",
        "--eval.scorer exact --eval.dataset e --data.output_key o --eval.max_new_tokens 2048",
        "--data.max_len 2048 is for prompt and answer together",
    ),
    ("rl", "--train.stop_when pass@8>0.5 --eval.dataset e --eval.steps 5", "there are reward, response_length"),
    ("rl", "--ckpt.save_steps 5 --ckpt.disable_ds", "add --ckpt.save_hf"),
    ("rl", "--ckpt.save_steps 0", "1 or more, or -1 for never"),
    ("rl", "--ds.zpg 2", "add --ds.zero_stage 3"),
    ("rl", "--actor.gradient_checkpointing_reentrant", "without --actor.gradient_checkpointing_enable"),
    ("rl", "--data.input_template Q", "put {} where the prompt goes"),
    ("rl", "--actor.lr_scheduler cosin", "did you mean cosine"),
    ("rl", "--actor.adam.betas 0.9 1.0", "from 0 to below 1"),
    ("rl", "--actor.adam.lr nan", "0 or more"),
    ("rl", "--rollout.temperature 0", "above 0"),
    ("rl", "--rollout.top_k 0", "or -1 for all tokens"),
    ("rl", "--reward.clip_range 5 -5", "the lower one first"),
    ("rl", "--actor.dual_clip 1.0", "above 1"),
    ("rl", "--actor.num_gpus_per_node 0", "1 or more"),
    ("rl", "--train.batch_size 0", "1 or more"),
    ("sft", "--train.micro_batch_size 7", "choose 126 or 133"),
    ("sft", "--data.multiturn", "--data.apply_chat_template"),
    ("sft", "--data.dataset_probs 1,1", "2 values for 1 sources"),
    ("sft", "--optim muon", "Muon"),
]

ALLOWED = [
    ("rl", "--rollout.batch_size 64 --train.batch_size 16 --train.micro_batch_size 4"),
    ("rl", "--train.micro_batch_size 3 --train.dynamic_batch_enable --train.max_tokens_per_gpu 100"),
    ("rl", "--algo.advantage.estimator rloo --rollout.n_samples_per_prompt 2"),
    ("rl", "--vllm.enable_sleep --train.colocate_all --ref.num_gpus_per_node 1"),
    ("rl", "--train.colocate_all --algo.kl.init_coef 0"),
    ("rl", "--reward.remote_url a.py,b.py --reward.weights 1 -0.5"),
    ("rl", "--ds.zpg 2 --ds.zero_stage 3"),
    ("rl", "--eval.steps 5 --eval.dataset e --ckpt.best_metric_key eval_default_pass1"),
    ("rl", "--actor.gradient_checkpointing_enable --actor.gradient_checkpointing_reentrant"),
    ("sft", "--data.multiturn --data.apply_chat_template"),
    ("sft", "--train.batch_size 8 --model.num_gpus_per_node 1"),
]


@pytest.mark.parametrize(("command", "text", "words"), FORBIDDEN)
def test_forbidden(command: str, text: str, words: str):
    with pytest.raises(ConfigError) as caught:
        parse(command, ((RL if command == "rl" else SFT) + text).split())
    lines = str(caught.value).splitlines()
    assert any(words in line for line in lines), lines
    assert all(line.startswith("--") and line.endswith(".") for line in lines)


@pytest.mark.parametrize(("command", "text"), ALLOWED)
def test_allowed(command: str, text: str):
    parse(command, ((RL if command == "rl" else SFT) + text).split())


def test_required_flags_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        parse("rl", ["--actor.num_gpus_per_node", "1"])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "--actor.model_name_or_path",
        "--data.prompt_dataset",
        "--reward.remote_url",
    ]
    parse("rl", ["--actor.model_name_or_path", "m", "--data.prompt_dataset", "d", "--reward.model_name_or_path", "r"])


def test_all_violations_are_reported_at_once():
    text = "--train.micro_batch_size 3 --vllm.enable_sleep --eval.steps 5 --local_rank 1 --rollout.top_p 0"
    with pytest.raises(ConfigError) as caught:
        parse("rl", (RL + text).split())
    assert len(str(caught.value).splitlines()) == 5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_has_a_range(command: str):
    numbers = {
        flag.path: "nan" if "float" in flag.type_name else "-2"
        for flag in flags_of(COMMANDS[command]).values()
        if flag.type_name.split()[0] in ("int", "float") and not flag.refused
    }
    numbers.pop("algo.advantage.is_correction_threshold", None)  # it has a rule of its own
    assert len(numbers) > 20
    for path, value in numbers.items():
        count = max(flags_of(COMMANDS[command])[path].arity[0], 1)
        with pytest.raises(ConfigError, match=rf"--{re.escape(path)} .*: it must be "):
            parse(command, [*(RL if command == "rl" else SFT).split(), f"--{path}", *[value] * count])


def test_schedules_are_those_of_transformers():
    """Read from its source: importing it takes longer than all other tests here together."""
    package = importlib.util.find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    source = ast.parse((Path(package.origin).parent / "trainer_utils.py").read_text(encoding="utf-8"))
    (kind,) = [node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "SchedulerType"]
    values = {node.value.value for node in kind.body if isinstance(node, ast.Assign)}
    assert set(SCHEDULES) <= values
