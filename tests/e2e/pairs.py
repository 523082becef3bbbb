"""What the tests of rm and dpo share: pairs whose better answer repeats a low digit, and the other one a high one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import Job, job, run
from scenario import SHAPE, Record, output_to, write_jsonl

from openrlhf_ext.models.tiny import build_tiny_model

PAIRS, HELD_OUT, EPOCHS, BATCH = 60, 20, 3, 8
STEPS = EPOCHS * 8  # 60 pairs in batches of 8: seven whole ones and a short one

FLAGS = f"""
--device cpu --ds.param_dtype fp32 --model.model_name_or_path model --data.dataset pairs.jsonl
--data.prompt_key prompt --data.max_len 48 --train.batch_size {BATCH} --train.micro_batch_size 4
--train.max_epochs {EPOCHS} --eval.dataset held_out.jsonl --eval.split train --eval.steps 6 --ckpt.save_steps 4
""".split()
RATE = {"rm": ["--adam.lr", "3e-3"], "dpo": ["--adam.lr", "1e-3"]}


def pair(kind: str, i: int) -> dict[str, Any]:
    digit, other, length = i % 5, 5 + (3 * i) % 5, 2 + i % 5
    return {"prompt": f"{kind}{i}: a low digit=", "chosen": str(digit) * length, "rejected": str(other) * length}


def prepare_pairs(folder: Path) -> Path:
    build_tiny_model(folder / "model", SHAPE)
    write_jsonl(folder / "pairs.jsonl", [pair("train", i) for i in range(PAIRS)])
    write_jsonl(folder / "held_out.jsonl", [pair("held", i) for i in range(HELD_OUT)])
    return folder


def flags_of(command: str, name: str, *more: str) -> list[str]:
    return [*FLAGS, *RATE.get(command, []), *output_to(name), *more]


def trained(command: str, folder: Path, name: str, *more: str, ranks: int = 1) -> tuple[Record, str]:
    """The record and the output of a run to the end. Later flags win. `ranks` are torchrun's."""
    return Record(folder / name), run(command, flags_of(command, name, *more), folder, ranks=ranks)


@dataclass(frozen=True)
class Killed:
    """A run that was killed after `step`, and continued."""

    record: Record
    output: str
    resumed_output: str


def kill_driver(started: Job) -> None:
    started.kill_driver()
    started.until_gone()


def killed_and_resumed(
    command: str, folder: Path, flags: Sequence[str], after: int, kill: Any = kill_driver, ranks: int = 1
) -> Killed:
    record = Record(folder / flags[flags.index("--ckpt.output_dir") + 1])
    with job(command, flags, folder, ranks=ranks) as started:
        started.until(lambda: after in record.steps(), f"step {after}")
        kill(started)
        output = started.output
    assert not (record.folder / "model").exists(), "it was killed on the way"
    resumed = run(command, [*flags, "--ckpt.load_enable"], folder, ranks=ranks)
    assert "step 1/" not in resumed
    return Killed(record, output, resumed)


def losses(record: Record, name: str = "train/loss") -> list[float]:
    return [line[name] for line in record.metrics() if name in line]
