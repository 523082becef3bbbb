"""What the user can mend is one sentence and exit code 2, in seconds and before Ray is started.

Most cases run in this process, where the imports are paid for once; a few are real processes, timed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import torch
from jobs import run
from scenario import FLAGS, prepare, row, write_jsonl

from openrlhf_ext.cli import boundary
from openrlhf_ext.cli.main import dispatch
from openrlhf_ext.track.checkpoints import CheckpointStore

PLAIN_REWARD = "def reward_func(queries, prompts, labels, **kwargs):\n    return [0.0] * len(queries)\n"
REWARDS = {
    "two_arguments.py": "def reward_func(queries, labels):\n    return [0.0] * len(queries)\n",
    "other_name.py": "def score(queries, prompts, labels):\n    return [0.0] * len(queries)\n",
    "syntax.py": "def reward_func(queries, prompts, labels)\n    return 0\n",
    "imports.py": "import no_such_module\n",
    "one_number.py": "def reward_func(queries, prompts, labels, **kwargs):\n    return 1.0\n",
    "too_few.py": "def reward_func(queries, prompts, labels, **kwargs):\n    return [1.0]\n",
    "no_rewards.py": "def reward_func(queries, prompts, labels, **kwargs):\n    return {'score': 1.0}\n",
    "nan.py": "def reward_func(queries, prompts, labels, **kwargs):\n    return [float('nan')] * len(queries)\n",
    "raises.py": "def reward_func(queries, prompts, labels, **kwargs):\n    return [1 / 0 for query in queries]\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("bad_input"))
    (folder / "reward.py").write_text(PLAIN_REWARD)
    for name, text in REWARDS.items():
        (folder / name).write_text(text)
    rows = [row("train", i) for i in range(4)]
    lines = [json.dumps(values) for values in rows]
    (folder / "broken.jsonl").write_text("\n".join([*lines[:2], lines[2][:-1], lines[3]]) + "\n")
    (folder / "empty.jsonl").write_text("")
    write_jsonl(folder / "renamed.jsonl", [{"question": r["input"], "answer": r["answer"]} for r in rows])
    write_jsonl(folder / "long.jsonl", [*rows, {"input": "x" * 200, "answer": "1"}])
    (folder / "text.csv").write_text("input,answer\na,1\nb,2,3\n")
    (folder / "broken.yaml").write_text("actor: [1\n")
    (folder / "strange.yaml").write_text("actor:\n  lerning_rate: 1\n")
    for name in ("no_template", "no_weights", "no_config", "half"):
        shutil.copytree(folder / "model", folder / name)
    (folder / "no_template/chat_template.jinja").unlink()
    (folder / "no_weights/model.safetensors").unlink()
    (folder / "no_config/config.json").unlink()
    weights = folder / "half/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    store = CheckpointStore(folder / "earlier/checkpoints")
    store.save(7, lambda partial: (partial / "policy").mkdir(), {})
    (folder / "a_file").write_text("")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


CASES = {
    "more memory than there is": (
        "--vllm.kv_cache_gb 100000",
        "This run does not fit: a machine's processes would hold",
        "and --plan.force starts it all the same.",
    ),
    # --- data
    "a missing file": (
        "--data.prompt_dataset trian.jsonl",
        "trian.jsonl does not exist: did you mean train.jsonl?",
    ),
    "a missing evaluation file": ("--eval.dataset data/held.jsonl", "data/held.jsonl does not exist, nor does its"),
    "a malformed line": (
        "--data.prompt_dataset broken.jsonl",
        "broken.jsonl, line 3: not valid JSON",
        "each line must be one JSON object",
    ),
    "a malformed CSV line": ("--data.prompt_dataset text.csv", "text.csv, line 3: 3 cells", "quote the cells"),
    "a missing column": (
        "--data.prompt_dataset renamed.jsonl",
        "no column 'input' (--data.input_key)",
        "the columns there are: question, answer",
    ),
    "a missing label column": ("--data.label_key label", "no column 'label' (--data.label_key)", "input, answer"),
    "an empty data set": ("--data.prompt_dataset empty.jsonl", "empty.jsonl has no rows", "at least one"),
    "a prompt that is too long": (
        "--data.prompt_dataset long.jsonl --data.overlong_prompt refuse",
        "row 5 of long has a prompt of 200 tokens, more than the 36 that fit",
        "drop or to truncate",
    ),
    "no chat template": (
        "--actor.model_name_or_path no_template --data.apply_chat_template",
        "tokenizer of no_template has no chat template",
        "use --data.input_template",
    ),
    # --- flags
    "batch sizes that do not divide": (
        "--train.batch_size 12",
        "--train.batch_size 12: it does not divide the 32 sequences of a rollout step",
        "choose 8 or 16",
    ),
    "micro-batches that do not divide": (
        "--train.micro_batch_size 3",
        "--train.batch_size 16: it is no multiple of --train.micro_batch_size 3 x 1 ranks",
        "choose 15 or 18",
    ),
    "a group of one": (
        "--algo.advantage.estimator group_norm --rollout.n_samples_per_prompt 1 --train.batch_size 8",
        "--algo.advantage.estimator group_norm: it compares the answers of one prompt",
        "set --rollout.n_samples_per_prompt to 2 or more",
    ),
    "an unknown flag": (
        "--rollout.n_sample_per_prompt 4",
        "--rollout.n_sample_per_prompt: there is no such flag; did you mean --rollout.n_samples_per_prompt",
    ),
    "a value of the wrong type": ("--train.batch_size many", "--train.batch_size many: it takes int"),
    "ring attention": ("--ds.ring_attn_size 2", "--ds.ring_attn_size 2: ", "ring attention", "leave it at 1"),
    "Muon": ("--actor.optim muon", "--actor.optim muon: ", "Muon", "leave it at adam"),
    "DeepSpeed tensor parallelism": ("--ds.tensor_parallel_size 2", "DeepSpeed tensor parallelism"),
    "ModelScope": ("--use_ms", "--use_ms", "ModelScope"),
    "several errors at once": (
        "--ds.ring_attn_size 2 --train.batch_size 12 --eval.steps 5 --eval.dataset None --vllm.enable_sleep",
        "--ds.ring_attn_size 2: ",
        "--train.batch_size 12: ",
        "--eval.steps 5: set --eval.dataset",
        "--vllm.enable_sleep: ",
    ),
    "a missing config file": ("--config stranger.yaml", "stranger.yaml does not exist: did you mean strange.yaml?"),
    "a config file that is not YAML": ("--config broken.yaml", "broken.yaml", "line 2"),
    "an unknown flag in a config file": ("--config strange.yaml", "strange.yaml", "actor.lerning_rate", "no such flag"),
    # --- rewards
    "no reward file": ("--reward.remote_url rewards.py", "rewards.py does not exist: did you mean reward.py?"),
    "no kind of reward": ("--reward.remote_url reward", "'reward' is neither a Python file (.py) nor an http(s) URL"),
    "a reward that takes two arguments": (
        "--reward.remote_url two_arguments.py",
        "two_arguments.py",
        "expected reward_func(queries: list[str], prompts: list[str], labels: list, **kwargs)",
        "found reward_func(queries, labels)",
    ),
    "a reward of another name": ("--reward.remote_url other_name.py", "no function reward_func (its functions: score)"),
    "a syntax error": ("--reward.remote_url syntax.py", "syntax error in", "syntax.py, line 1"),
    "a reward that cannot be imported": ("--reward.remote_url imports.py", "cannot be imported", "no_such_module"),
    "one number for all": ("--reward.remote_url one_number.py", "wrong_type", "float 1.0, not 2 numbers", "expected"),
    "one number for two queries": ("--reward.remote_url too_few.py", "wrong_length", "1 numbers for 2 queries"),
    "a dict without rewards": ("--reward.remote_url no_rewards.py", "a dict without 'rewards' (its keys: score)"),
    "rewards that are not finite": ("--reward.remote_url nan.py", "not_finite", "2 of 2"),
    "a reward that raises": ("--reward.remote_url raises.py", "raises.py", "ZeroDivisionError", "trial call"),
    # --- models
    "no model": ("--actor.model_name_or_path ./modle", "./modle does not exist", "give a folder"),
    "no weights": ("--actor.model_name_or_path no_weights", "no_weights has no weights", "*.safetensors"),
    "no config": ("--actor.model_name_or_path no_config", "no_config has no config.json"),
    "half of the weights": ("--actor.model_name_or_path half", "half", "safetensors", "complete"),
    "a reward model without a head": (
        "--reward.model_name_or_path model",
        "model has no score.weight, the head of a reward model",
        "--ds.value_head_prefix",
    ),
    "an adapter for a module that is not there": (
        "--ds.lora.rank 4 --ds.lora.target_modules q_proj qkv",
        "qkv is no linear module of the model",
        "name some of",
        "q_proj",
    ),
    "4 bits without adapters": ("--ds.load_in_4bit", "--ds.load_in_4bit", "--ds.lora.rank"),
    # --- machines
    "flash attention on a CPU": (
        "--ds.attn_implementation flash_attention_2",
        "--ds.attn_implementation flash_attention_2 needs flash_attention, which this cpu lacks",
        "give --ds.attn_implementation sdpa",
    ),
    "no Ray at that address": (
        "--actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1 --ray.address 127.0.0.1:{closed}",
        "No Ray cluster answers at --ray.address 127.0.0.1:",
        "start one with `ray start --head`, or leave the flag out",
    ),
    "an address that is none": (
        "--actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1 --ray.address somewhere",
        "--ray.address somewhere is no address",
        "host:port",
    ),
    # --- folders
    "an earlier run's checkpoints": (
        "--ckpt.path earlier/checkpoints",
        "earlier/checkpoints holds checkpoints up to step 7 of an earlier run",
        "--ckpt.load_enable",
    ),
    "an output folder that is a file": ("--ckpt.output_dir a_file", "--ckpt.output_dir a_file", "folder"),
}  # fmt: skip


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said; nothing is left of it."""
    here = psutil.Process()
    before = set(here.children(recursive=True))  # other tests' services
    with pytest.raises(SystemExit) as stop:
        boundary.run(dispatch, argv)
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    left = [process.cmdline() for process in set(here.children(recursive=True)) - before]
    assert not left, f"still running: {left}"
    return said


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    flags, *words = CASES[case]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        flags = flags.replace("{closed}", str(closed.getsockname()[1]))
        said = refusal(
            ["rl", *FLAGS, "--ckpt.output_dir", "out", "--ckpt.path", "out/checkpoints", *flags.split()], capsys
        )
    for word in words:
        assert word in said
    assert not (folder / "out/metrics.jsonl").exists()


SFT = ["sft", "--device", "cpu", "--ds.param_dtype", "fp32", "--model.model_name_or_path", "model", "--data.dataset"]
SFT_CASES = {
    "a missing file": ("trian.jsonl --data.output_key answer", "did you mean train.jsonl?"),
    "a missing column": ("renamed.jsonl --data.output_key answer", "no column 'input'", "question, answer"),
    "a missing answer": ("train.jsonl --data.output_key reply", "no column 'reply' (--data.output_key)", "difficulty"),
    "no chat template": (
        "train.jsonl --model.model_name_or_path no_template --data.apply_chat_template",
        "tokenizer of no_template has no chat template",
    ),
    "an output folder that is a file": (
        "train.jsonl --data.output_key answer --ckpt.output_dir a_file",
        "--ckpt.output_dir a_file cannot be written to",
    ),
}


@pytest.mark.parametrize("case", SFT_CASES)
def test_refused_by_sft(case: str, capsys: pytest.CaptureFixture[str]):
    flags, *words = SFT_CASES[case]
    said = refusal([*SFT, *flags.split()], capsys)
    for word in words:
        assert word in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_asked_for_and_not_there(capsys: pytest.CaptureFixture[str]):
    said = refusal(["rl", *FLAGS, "--device", "cuda"], capsys)
    assert "--device.type cuda was asked for, but no GPU is visible here" in said
    assert "give --device.type cpu" in said


def test_all_errors_of_a_command_line_are_said_at_once(folder: Path):
    """A real process, which answers before it has imported torch."""
    flags = "--ds.ring_attn_size 2 --train.batch_size 12 --rollout.n_sample_per_prompt 4 --train.seed x"
    unknown = timed([*FLAGS, *flags.split()], folder, within=10)
    assert [line.split(":")[0] for line in unknown.splitlines()] == ["--rollout.n_sample_per_prompt", "--train.seed x"]
    broken = timed([*FLAGS, *flags.split()[:4]], folder, within=10)
    assert [line.split(":")[0] for line in broken.splitlines()] == ["--ds.ring_attn_size 2", "--train.batch_size 12"]


@pytest.mark.parametrize("flags", ["--data.prompt_dataset trian.jsonl", "--reward.remote_url two_arguments.py"])
def test_bad_input_is_said_in_seconds(flags: str, folder: Path):
    said = timed([*FLAGS, *flags.split()], folder, within=30)
    last = said.splitlines()[-1]
    assert flags.split()[1] in last
    assert last.endswith((".", "?"))
    assert "waiting for Ray" not in said


def timed(flags: list[str], folder: Path, *, within: float) -> str:
    """The output of a real process; `within` seconds, three times what it takes on a quiet machine."""
    start = time.monotonic()
    said = run("rl", flags, folder, exit_code=2)
    assert time.monotonic() - start < within
    assert "Traceback" not in said
    return said
