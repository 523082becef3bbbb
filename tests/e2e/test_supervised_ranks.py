"""Two ranks of sft, rm and dpo: those that torchrun started, and those of a Ray of our own."""

from __future__ import annotations

import shlex
from pathlib import Path

import psutil
import pytest
from jobs import Job, run
from pairs import PAIRS, flags_of, killed_and_resumed, losses, prepare_pairs, trained
from scenario import Record, output_to, write_jsonl

pytestmark = pytest.mark.slow

KILLED_AFTER = 5
SFT = shlex.split("""
--device cpu --ds.param_dtype fp32 --model.model_name_or_path model --data.dataset sft.jsonl --data.output_key answer
--data.max_len 48 --data.input_template {} --train.batch_size 8 --train.micro_batch_size 4 --train.max_epochs 6
--adam.lr 1e-2 --ckpt.save_steps 3
""")
RAY = ("--model.num_gpus_per_node", "2", "--ds.zero_stage", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare_pairs(tmp_path_factory.mktemp("ranks"))
    rows = [{"input": f"train{i}: a low digit=", "answer": str(i % 5) * (1 + i % 7)} for i in range(PAIRS)]
    write_jsonl(folder / "sft.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def one_rank(folder: Path) -> Record:
    run("sft", [*SFT, *output_to("one")], folder)
    return Record(folder / "one")


def kill_second_rank(started: Job) -> None:
    """torchrun ends the others."""
    (second,) = [process for process in started.processes() if _rank(process) == "1"]
    second.kill()
    started.until_gone(60)


def _rank(process: psutil.Process) -> str | None:
    return process.environ().get("RANK")


def same_at_first(found: Record, expected: Record) -> None:
    assert losses(found)[:3] == pytest.approx(losses(expected)[:3], rel=1e-5)
    assert losses(found) == pytest.approx(losses(expected), rel=1e-3)


def test_ranks_of_torchrun_learn_what_one_does_and_go_on_after_a_kill(folder: Path, one_rank: Record):
    flags = [*SFT, *output_to("torchrun")]
    killed = killed_and_resumed("sft", folder, flags, KILLED_AFTER, kill=kill_second_rank, ranks=2)
    same_at_first(killed.record, one_rank)
    assert killed.resumed_output.count(" optimizer steps of 8 on 2 cpu ranks.") == 1
    assert killed.resumed_output.count("step 48/48") == 1
    assert killed.record.steps() == list(range(1, 49))


@pytest.mark.parametrize("command", ["rm", "dpo"])
def test_pairs_on_ranks_of_torchrun(folder: Path, command: str):
    expected, _ = trained(command, folder, f"{command}_one")
    flags = flags_of(command, f"{command}_torchrun")
    if command == "dpo":
        flags += ["--ref.cache_dir", "shared_by_ranks"]
    killed = killed_and_resumed(command, folder, flags, KILLED_AFTER, kill=kill_second_rank, ranks=2)
    same_at_first(killed.record, expected)
    assert losses(killed.record, "eval/loss") == pytest.approx(losses(expected, "eval/loss"), rel=1e-4)
    if command == "dpo":
        assert "reference log-probs: 0 were computed, 160 were found" in killed.resumed_output


@pytest.mark.parametrize("command", ["sft", "rm", "dpo"])
def test_ranks_of_ray_learn_what_one_does_and_go_on_after_a_kill(folder: Path, one_rank: Record, command: str):
    name = f"{command}_ray"
    if command == "sft":
        expected, flags = one_rank, [*SFT, *RAY, *output_to(name)]
    else:
        expected, flags = trained(command, folder, f"{command}_one_of_ray")[0], flags_of(command, name, *RAY)
    killed = killed_and_resumed(command, folder, flags, KILLED_AFTER)
    same_at_first(killed.record, expected)
