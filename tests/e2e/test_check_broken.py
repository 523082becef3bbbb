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
from broken_cases import ERRORS, WARNINGS
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
        assert named(found, "error", "device", ["The roles ask for 4 CPUs", "there are 3"], ["lower"])


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
