"""`check` on set-ups that are broken in one way each: it names the fault and its remedy, and still says the rest.

Most cases run in this process, where the imports are paid for once; a few are real processes, timed.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_setups import Served, prepare_broken, reward_server
from ray_cluster import ROOT, ray_cluster

from openrlhf_ext.cli.check import main
from openrlhf_ext.device.host_memory import host_bytes

WITHIN_S = 15
BYTES_PER_TOKEN = 80_000
"""Less than a token takes of the machine's memory with this model and these flags."""
BUSY = ["--limit_s", "60"]  # the tests' machine may be doing much else
RL = shlex.split("""
--device cpu --ds.param_dtype fp32 --actor.model_name_or_path model --reward.remote_url good.py
--data.prompt_dataset train.jsonl --data.label_key answer --data.max_len 48 --rollout.max_new_tokens 12
--rollout.batch_size 8 --rollout.n_samples_per_prompt 4 --rollout.micro_batch_size 8
--train.batch_size 16 --train.micro_batch_size 8 --train.num_episodes 2 --actor.adam.lr 3e-3
--algo.advantage.estimator reinforce --eval.dataset held_out.jsonl
""")
SUPERVISED = shlex.split("--device cpu --ds.param_dtype fp32 --model.model_name_or_path model --train.batch_size 8")
SFT = [*SUPERVISED, *shlex.split("--data.dataset train.jsonl --data.output_key answer")]
PAIRS = [*SUPERVISED, *shlex.split("--data.dataset pairs.jsonl --data.prompt_key prompt")]
COMMANDS = {"rl": RL, "sft": SFT, "rm": PAIRS, "dpo": PAIRS}
ALWAYS = {"flags", "device", "packages", "machine", "folders", "model", "tokenizer", "data", "plan"}
AREAS = {name: ALWAYS | ({"reward", "evaluation data"} if name == "rl" else set()) for name in COMMANDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_broken(tmp_path_factory.mktemp("broken"))


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with reward_server() as served:
        yield served


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(folder)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


# name -> (command and flags, area, words of the text, words of the remedy); {} are what a fixture provides
ERRORS = {
    # --- flags
    "a batch that does not divide": (
        "rl --train.batch_size 12 --train.micro_batch_size 4",
        "flags",
        ["--train.batch_size 12", "does not divide the 32 sequences"],
        ["choose 8 or 16"],
    ),
    "a flag that is not there": (
        "rl --rollout.n_sample_per_prompt 4",
        "flags",
        ["--rollout.n_sample_per_prompt", "no such flag"],
        ["did you mean --rollout.n_samples_per_prompt"],
    ),
    "nothing to train on": (
        "rl --data.prompt_dataset None",
        "flags",
        ["--data.prompt_dataset is required"],
        ["give the prompts, a file, folder or hub name"],
    ),
    # --- device
    "flash attention on a CPU": (
        "rl --ds.attn_implementation flash_attention_2",
        "model",
        ["flash_attention_2 needs flash_attention, which this cpu lacks"],
        ["give --ds.attn_implementation sdpa"],
    ),
    # --- models
    "no model folder": (
        "rl --actor.model_name_or_path ./modle",
        "model",
        ["./modle does not exist"],
        ["config.json and *.safetensors, or a hub name"],
    ),
    "a model in pickles": (
        "rl --actor.model_name_or_path pickled",
        "model",
        ["pickled has only pickle weights (pytorch_model.bin)"],
        ["*.safetensors"],
    ),
    "an index that names a missing shard": (
        "sft --model.model_name_or_path index",
        "model",
        ["lacks model-00002-of-00002.safetensors, which its index names"],
        ["copy or download it again"],
    ),
    "an index that was cut off": (
        "rl --actor.model_name_or_path torn_index",
        "model",
        ["torn_index/model.safetensors.index.json is not the whole index"],
        ["copy or download it again"],
    ),
    "an unknown architecture": (
        "dpo --model.model_name_or_path unknown",
        "model",
        ["The model", "unknown cannot be read", "qwen99"],
        ["check its config.json"],
    ),
    "a config.json that is no JSON": (
        "rl --actor.model_name_or_path bad_json",
        "model",
        ["bad_json cannot be read", "config"],
        ["check its config.json"],
    ),
    "half of the weights": (
        "rm --model.model_name_or_path half",
        "model",
        ["half cannot be loaded (model.safetensors"],
        ["are its files complete?"],
    ),
    "adapters instead of a model": (
        "rl --actor.model_name_or_path adapters",
        "model",
        ["adapters holds adapters without their base"],
        ["give the folder of a whole model"],
    ),
    "an adapter for a module that is not there": (
        "rl --ds.lora.rank 4 --ds.lora.target_modules q_proj qkv",
        "model",
        ["qkv is no linear module of the model"],
        ["name some of", "q_proj"],
    ),
    "a reward model without a head": (
        "rl --reward.model_name_or_path model",
        "model",
        ["no score.weight, the head of a reward model"],
        ["--ds.value_head_prefix"],
    ),
    # --- tokenizers
    "no chat template": (
        "rl --actor.model_name_or_path no_template --data.apply_chat_template",
        "tokenizer",
        ["no_template has no chat template"],
        ["use --data.input_template"],
    ),
    "no end of text": (
        "rl --actor.model_name_or_path no_eos",
        "tokenizer",
        ["no_eos has no EOS token"],
        ["set eos_token in its tokenizer_config.json"],
    ),
    "more tokens than the embedding has rows": (
        "sft --model.model_name_or_path more_tokens",
        "tokenizer",
        ["more_tokens has 291 tokens", "embedding 259 rows"],
        ["the tokenizer that the model was trained with"],
    ),
    "a critic with another vocabulary": (
        "rl --algo.advantage.estimator gae --critic.model_name_or_path other_scorer",
        "tokenizer",
        ["the critic other_scorer has another vocabulary (291 tokens)"],
        ["the same vocabulary"],
    ),
    "a reference with another vocabulary": (
        "dpo --ref.model_name_or_path more_tokens",
        "tokenizer",
        ["the reference more_tokens has another vocabulary"],
        ["the same vocabulary"],
    ),
    # --- data
    "a missing file": (
        "rl --data.prompt_dataset trian.jsonl",
        "data",
        ["trian.jsonl does not exist"],
        ["did you mean train.jsonl?"],
    ),
    "a missing evaluation file": (
        "rl --eval.dataset held_uot.jsonl",
        "evaluation data",
        ["held_uot.jsonl does not exist"],
        ["did you mean held_out.jsonl?"],
    ),
    "a corrupt line": (
        "rl --data.prompt_dataset corrupt.jsonl",
        "data",
        ["corrupt.jsonl, line 3: not valid JSON"],
        ["each line must be one JSON object"],
    ),
    "a parquet file that was cut off": (
        "sft --data.dataset truncated.parquet",
        "data",
        ["truncated.parquet is not a whole parquet file"],
        ["copy or download it again"],
    ),
    "a column of another name": (
        "rl --data.prompt_dataset renamed.jsonl",
        "data",
        ["no column 'input' (--data.input_key)"],
        ["question, answer"],
    ),
    "a pair without its worse answer": (
        "rm --data.rejected_key worse",
        "data",
        ["no column 'worse' (--data.rejected_key)"],
        ["prompt, chosen, rejected"],
    ),
    "no rows": ("dpo --data.dataset empty.jsonl", "data", ["empty.jsonl has no rows"], ["at least one"]),
    "a prompt longer than its room": (
        "rl --data.prompt_dataset long.jsonl --data.overlong_prompt refuse",
        "data",
        ["row 21 of long has a prompt of 200 tokens, more than the 36 that fit"],
        ["drop or to truncate"],
    ),
    "numbers where texts should be": (
        "sft --data.dataset no_message.jsonl",
        "data",
        ["column 'input' is int, not text"],
        ["--data.apply_chat_template"],
    ),
    # --- rewards
    "no reward file": (
        "rl --reward.remote_url rewards.py",
        "reward",
        ["rewards.py does not exist"],
        ["did you mean"],
    ),
    "a reward with a syntax error": (
        "rl --reward.remote_url syntax.py",
        "reward",
        ["syntax error in", "syntax.py, line 1"],
        ["expected reward_func(queries"],
    ),
    "a reward that cannot be imported": (
        "rl --reward.remote_url imports.py",
        "reward",
        ["imports.py: it cannot be imported", "no_such_module"],
        ["expected reward_func(queries"],
    ),
    "a reward of another name": (
        "rl --reward.remote_url other_name.py",
        "reward",
        ["no function reward_func (its functions: score)"],
        ["expected reward_func(queries"],
    ),
    "a reward that takes two arguments": (
        "rl --reward.remote_url two_arguments.py",
        "reward",
        ["two_arguments.py"],
        ["found reward_func(queries, labels)"],
    ),
    "a reward that raises": (
        "rl --reward.remote_url raises.py",
        "reward",
        ["raises.py failed its trial call", "ZeroDivisionError"],
        ["expected reward_func(queries"],
    ),
    "a reward that returns nothing": (
        "rl --reward.remote_url none.py",
        "reward",
        ["none.py failed its trial call", "the answer is None"],
        ["{'rewards': one number per query"],
    ),
    "rewards that are not finite": (
        "rl --reward.remote_url nan.py",
        "reward",
        ["nan.py failed its trial call", "not finite"],
        ["expected reward_func(queries"],
    ),
    "a reward that sleeps beyond its limit": (
        "rl --reward.remote_url sleeps.py --reward.timeout_s 0.5",
        "reward",
        ["sleeps.py gave no answer to a trial call within the 0.5 s of --reward.timeout_s"],
        ["make it faster, or raise --reward.timeout_s"],
    ),
    "a reward that ends its process": (
        "rl --reward.remote_url exits.py",
        "reward",
        ["exits.py failed its trial call", "exit code 3"],
        ["expected reward_func(queries"],
    ),
    "a reward server that is not there": (
        "rl --reward.remote_url http://127.0.0.1:{closed}/score",
        "reward",
        ["http://127.0.0.1:", "/score failed its trial call", "ConnectError"],
        ["start the server"],
    ),
    "a reward server that fails": (
        "rl --reward.remote_url {broken}",
        "reward",
        ["/broken failed its trial call", "HTTP status 500: out of order"],
        ["start the server", "POST"],
    ),
    "a reward server without that path": (
        "rl --reward.remote_url {absent}",
        "reward",
        ["/absent failed its trial call", "HTTP status 404"],
        ["check the port and path"],
    ),
    # --- judges
    "a rubric that shows what the rows do not have": (
        "rl --judge.model_name_or_path model --judge.prompt no_note.yaml",
        "judge",
        ["rubric no_note.yaml: its instructions cannot be rendered, prompt"],
        ["the row does not have what they ask for", "note"],
    ),
    "a rubric without a scale": (
        "rl --judge.model_name_or_path model --judge.prompt no_scale.yaml",
        "judge",
        ["no_scale.yaml", "criterion correct"],
        ["boolean"],
    ),
    "a judge's endpoint that is not there": (
        "rl --judge.url http://127.0.0.1:{closed}/v1 --judge.served_model_name m --judge.prompt rubric.yaml",
        "judge",
        ["http://127.0.0.1:", "/v1 cannot be reached"],
        ["start it, or check the URL"],
    ),
    # --- folders and disk
    "an output folder below a file": (
        "rl --ckpt.output_dir a_file/out",
        "folders",
        ["--ckpt.output_dir a_file/out cannot be written to", "a_file is a file"],
        ["choose another --ckpt.output_dir"],
    ),
    "a folder that is closed": (
        "sft --ckpt.path /proc/checkpoints",
        "folders",
        ["--ckpt.path /proc/checkpoints cannot be written to", "/proc is closed"],
        ["choose another --ckpt.path"],
    ),
    "an earlier run's checkpoints": (
        "rl --ckpt.path earlier/checkpoints",
        "folders",
        ["earlier/checkpoints holds checkpoints up to step 7 of an earlier run"],
        ["--ckpt.load_enable"],
    ),
    "checkpoints for which the disk is too small": (
        "rl --train.num_episodes 100000000 --ckpt.save_steps 1 --ckpt.max_num 100000000",
        "disk",
        ["--ckpt.path", "will be written and", "are free"],
        ["lower --ckpt.max_num"],
    ),
    # --- the machine and the cluster
    "more memory than the machine has": (
        "rl --data.max_len {endless} --rollout.max_new_tokens 100000",
        "memory",
        ["This run does not fit", "a machine's processes would hold", "too little"],
        ["--plan.force starts it all the same"],
    ),
    "a dashboard port in use": (
        "rl --ray.dashboard --ray.dashboard_port {taken}",
        "machine",
        ["--ray.dashboard_port", "is in use"],
        ["choose a free port"],
    ),
    "no cluster at that address": (
        "rl --ray.address 127.0.0.1:{closed} --actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1",
        "device",
        ["No Ray cluster answers at --ray.address 127.0.0.1:"],
        ["start one with `ray start --head`"],
    ),
}  # fmt: skip
WARNINGS = {
    "a reward model with another vocabulary": (
        "rl --reward.model_name_or_path other_scorer",
        "tokenizer",
        ["the reward model other_scorer has another vocabulary (291 tokens)", "anew"],
        ["with the policy's vocabulary"],
    ),
    "no column for labels": (
        "rl --data.label_key None",
        "data",
        ["no column is named for the labels", "answer, difficulty"],
        ["give --data.label_key"],
    ),
    "labels that are empty": (
        "rl --data.prompt_dataset unlabelled.jsonl",
        "data",
        ["10 of 20 labels in column 'answer' are empty"],
        ["fill them in"],
    ),
    "responses that are empty": (
        "sft --data.dataset unlabelled.jsonl",
        "data",
        ["10 of 20 rows: empty response"],
        ["leave them out"],
    ),
    "pairs of two equal answers": (
        "dpo --data.dataset same_pairs.jsonl",
        "data",
        ["7 of 8 rows: identical"],
        ["leave them out"],
    ),
    "prompts that will be dropped": (
        "rl --data.prompt_dataset long.jsonl --data.overlong_prompt drop",
        "data",
        ["1 of 21 prompts are longer than the room for them and will be dropped"],
        ["raise --data.max_len"],
    ),
    "fewer prompts than a batch": (
        "rl --rollout.batch_size 32",
        "data",
        ["20 prompts are fewer than one batch of 32"],
        ["--rollout.batch_size 20"],
    ),
    "more tokens than the model has positions": (
        "sft --data.max_len 512",
        "plan",
        ["--data.max_len 512 is beyond the 256 positions"],
        ["give 256 or less"],
    ),
}  # fmt: skip


def findings(command: list[str], capsys: pytest.CaptureFixture[str], exit_code: int) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main([*command, "--json", *(() if "--limit_s" in command else BUSY)]) == exit_code
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] == (exit_code == 0) and answer["command"] == command[0]
    assert answer["seconds"] < WITHIN_S
    return answer["findings"]


def named(found: list[dict[str, Any]], level: str, area: str, text: list[str], remedy: list[str]) -> list[Any]:
    """The findings of that area and level that have these words."""
    return [
        item
        for item in found
        if (item["level"], item["area"]) == (level, area)
        and all(word in item["text"] for word in text)
        and all(word in item["remedy"] for word in remedy)
    ]


def command_of(flags: str, served: Served, numbers: dict[str, int]) -> list[str]:
    places = {"broken": served.broken, "absent": served.absent, **numbers}
    name, *rest = shlex.split(flags.format(**places))
    return [name, *COMMANDS[name], *rest]


@pytest.fixture
def numbers() -> Iterator[dict[str, int]]:
    """A port that something listens on, one that nothing does; and a length that no machine like this has room for."""
    with socket.socket() as closed, socket.socket() as taken:
        closed.bind(("127.0.0.1", 0))
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endless = 100_001 + host_bytes() // BYTES_PER_TOKEN
        yield {"closed": closed.getsockname()[1], "taken": taken.getsockname()[1], "endless": endless}


@pytest.mark.parametrize("case", ERRORS)
def test_a_fault_is_named_with_its_remedy(
    case: str, capsys: pytest.CaptureFixture[str], served: Served, numbers: dict[str, int]
):
    flags, area, text, remedy = ERRORS[case]
    command = command_of(flags, served, numbers)
    found = findings(command, capsys, exit_code=2)
    errors = [item for item in found if item["level"] == "error"]
    assert named(found, "error", area, text, remedy), errors
    assert {item["area"] for item in errors} == {area}, errors  # one thing is broken, and nothing else is accused
    said = {item["area"] for item in found}
    assert AREAS[command[0]] - said <= {"evaluation data"} - {area}, "the rest was looked at all the same"


@pytest.mark.parametrize("case", WARNINGS)
def test_what_is_probably_not_meant_is_a_warning(
    case: str, capsys: pytest.CaptureFixture[str], served: Served, numbers: dict[str, int]
):
    flags, area, text, remedy = WARNINGS[case]
    found = findings(command_of(flags, served, numbers), capsys, exit_code=0)
    assert named(found, "warning", area, text, remedy), [item for item in found if item["level"] == "warning"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_set_up_that_works(name: str, capsys: pytest.CaptureFixture[str], served: Served):
    flags = [*COMMANDS[name], *(["--reward.remote_url", f"good.py,{served.good}"] if name == "rl" else [])]
    found = findings([name, *flags], capsys, exit_code=0)
    assert {item["area"] for item in found} >= AREAS[name] | {"disk", "memory"}
    seen = " ".join(item["text"] for item in found if item["area"] == "data")
    assert {"rl": "'train0: 0+0='", "sft": "learned: '0<|im_end|>'"}.get(name, "chosen: '1<|im_end|>'") in seen


def test_two_faults_are_both_named(capsys: pytest.CaptureFixture[str]):
    flags = shlex.split("--actor.model_name_or_path pickled --reward.remote_url syntax.py --ckpt.path a_file/x")
    found = findings(["rl", *RL, *flags, "--data.prompt_dataset", "renamed.jsonl"], capsys, exit_code=2)
    assert {item["area"] for item in found if item["level"] == "error"} == {"model", "reward", "folders", "data"}
    assert [item["level"] for item in found] == sorted((item["level"] for item in found), key=LEVELS.index)


LEVELS = ["ok", "warning", "error"]


def test_few_open_files(capsys: pytest.CaptureFixture[str]):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        found = findings(["sft", *SFT], capsys, exit_code=0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert named(found, "warning", "machine", ["may open 1024 files"], ["ulimit -n"])


def test_a_reward_that_is_slower_than_a_check_can_wait(capsys: pytest.CaptureFixture[str]):
    found = findings(["rl", *RL, "--reward.remote_url", "sleeps.py", "--limit_s", "5"], capsys, exit_code=0)
    assert named(found, "warning", "reward", ["no answer to a trial call within 2 s, of the 180"], ["by hand"])


def test_a_package_of_another_version(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the metadata that an installation of this package brings along."""
    installed = tmp_path / "openrlhf_ext-0.1.0.dist-info"
    installed.mkdir()
    needs = "Requires-Dist: torch>=99\nRequires-Dist: no-such-package>=1\n"
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: openrlhf-ext\nVersion: 0.1.0\n{needs}")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = findings(["sft", *SFT], capsys, exit_code=2)
    assert named(found, "warning", "packages", [f"torch {torch.__version__}", "torch>=99"], ["pip install 'torch>=99'"])
    assert named(found, "error", "packages", ["no-such-package is not installed"], ["pip install 'no-such-package>=1'"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_asked_for_and_not_there(capsys: pytest.CaptureFixture[str]):
    found = findings(["rl", *RL, "--device", "cuda"], capsys, exit_code=2)
    assert named(found, "error", "device", ["--device.type cuda was asked for"], ["--device.type cpu"])
    assert not [item for item in found if item["level"] == "error" and item["area"] != "device"]


def test_a_config_file_that_is_not_yaml(capsys: pytest.CaptureFixture[str]):
    found = findings(["rl", *RL, "--config", "broken.yaml"], capsys, exit_code=2)
    assert named(found, "error", "flags", ["broken.yaml"], [""])


REAL = {
    "rl --actor.model_name_or_path no_eos": 2,
    "sft --data.dataset truncated.parquet": 2,
    "rl": 0,
}


@pytest.mark.parametrize("flags", REAL)
def test_a_real_process_answers_in_seconds(flags: str, folder: Path):
    name, *rest = flags.split()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "openrlhf_ext.cli.main", "check", name, *COMMANDS[name], *rest, *BUSY]
    environment = os.environ | {"PYTHONPATH": ROOT}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=90, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, not wall time: other tests may be using the machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < WITHIN_S
    assert done.returncode == REAL[flags], done.stdout + done.stderr
    last = done.stdout.rstrip().splitlines()[-1]
    assert last.startswith("0 error" if REAL[flags] == 0 else "1 error")
    assert not (folder / "ckpt").exists(), "a check leaves nothing"


@pytest.mark.slow
def test_more_processes_than_the_cluster_has(folder: Path, capsys: pytest.CaptureFixture[str]):
    with ray_cluster(folder, cpus=3) as address:
        flags = f"--ray.address {address} --actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1 --vllm.num_engines 2"
        found = findings(["rl", *RL, *flags.split()], capsys, exit_code=2)
        assert named(found, "ok", "ray", [f"the cluster at {address} has 3 CPUs"], [])
        assert named(found, "error", "device", ["The roles ask for 4 CPUs", "the cluster has 3"], ["lower"])


def test_a_reward_that_needs_the_rows_columns(folder: Path, capsys: pytest.CaptureFixture[str]):
    """It is called on real rows also where there is no tokenizer, and never blamed for columns that are not there."""
    head = "def reward_func(queries, prompts, labels, difficulty):\n    "
    (folder / "columns.py").write_text(
        f"{head}return [float(d) + len(label) for d, label in zip(difficulty, labels)]\n"
    )
    reward = ["--reward.remote_url", "columns.py"]
    without_tokenizer = findings(["rl", *RL, *reward, "--actor.model_name_or_path", "no_eos"], capsys, exit_code=2)
    assert named(without_tokenizer, "ok", "reward", ["columns.py answered a trial call on the first prompts"], [])
    without_rows = findings(["rl", *RL, *reward, "--data.prompt_dataset", "empty.jsonl"], capsys, exit_code=2)
    assert named(
        without_rows, "warning", "reward", ["columns.py can be imported, and was not called"], ["mend the data"]
    )
