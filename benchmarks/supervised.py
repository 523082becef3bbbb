"""SFT, preference models and DPO: ours beside TRL's trainers, in tokens per second and peak memory, on a CPU.

`python benchmarks/supervised.py --data FOLDER`, the folder having gsm8k/ and hh-rlhf/. All sides have the same model,
rows at their own lengths, optimizer, loss, precision (float32) and threads, and take turns of one epoch in one run;
every side is a process of its own that waits while another plays.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

from measure import QUIET_CORES, Turns, take_turns
from report import versions
from rich.console import Console
from rich.table import Table
from sides.gate import Side, SideError
from sides.supervised_rows import SupervisedWorkload, Task, lengths_of, write_workload

from openrlhf_ext.models.tiny import TinyShape

console = Console(width=110)

SIDES = {"ours": "supervised_ours", "trl": "supervised_trl", "trl grouped": "supervised_trl_grouped"}
SHAPES = {
    "4m": TinyShape(hidden=256, layers=4, heads=8, kv_heads=4, intermediate=768, vocab=4096, head_dim=32),
    "tiny": TinyShape(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=128, vocab=512),
}
SPEED_AIM, MEMORY_AIM = 1.5, 1.0
LIBRARIES = ("torch", "deepspeed", "transformers", "trl")
MIB = 2**20


def main() -> int:
    options = _options()
    start = time.monotonic()
    results = {}
    with tempfile.TemporaryDirectory(prefix="supervised_") as scratch:
        for task in options.tasks:
            try:
                results[task] = _measure(_workload(task, options, options.keep or Path(scratch)), options)
            except SideError as error:
                print(error, file=sys.stderr)
                return 1
            console.print(title(task, results[task]), soft_wrap=True)
            console.print(table(results[task]))
            for line in remarks(results[task]):
                console.print(line, soft_wrap=True)
            console.print()
    machine = {"cores": str(os.cpu_count()), "kind": platform.machine(), "python": platform.python_version()}
    machine |= versions(LIBRARIES)
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), soft_wrap=True)
    console.print(f"{time.monotonic() - start:.0f} s in all")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n", encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="the folder with gsm8k/ and hh-rlhf/")
    parser.add_argument("--json", type=Path, help="write all figures to this file as well")
    parser.add_argument("--tasks", nargs="+", choices=get_args(Task), default=list(get_args(Task)))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=3, help="turns of every side")
    parser.add_argument("--repeats", type=int, default=3, help="disturbed turns a side may play again")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of a turn")
    parser.add_argument("--batch", type=int, default=32, help="of an optimizer step; of pairs half as many")
    parser.add_argument("--micro-batch", type=int, default=8, help="of TRL's micro-batches; of pairs half as many")
    parser.add_argument("--max-tokens", type=int, default=2048, help="of our micro-batches, padding included")
    parser.add_argument("--max-len", type=int, default=1024, help="longer rows are not among those drawn")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every side, in its turn")
    parser.add_argument("--shape", choices=SHAPES, default="4m")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep the sides' files and logs here")
    parser.add_argument("--quick", action="store_true", help="does it run at all: the figures mean nothing")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.repeats, options.steps, options.batch, options.shape = 1, 0, 2, 8, "tiny"
    for name in ("batch", "micro_batch"):
        if getattr(options, name) % 2:
            parser.error(f"--{name.replace('_', '-')} must be even: of pairs it is half as many")
    if options.batch % options.micro_batch:
        parser.error("--batch must be a multiple of --micro-batch")
    return options


def _workload(task: Task, options: argparse.Namespace, folder: Path) -> SupervisedWorkload:
    of_example = 1 if task == "sft" else 2
    batch = options.batch // of_example
    return SupervisedWorkload(
        task=task,
        folder=folder / task,
        threads=options.threads,
        examples=options.steps * batch,
        batch=batch,
        micro_batch=options.micro_batch // of_example,
        max_tokens=options.max_tokens,
        window=options.steps,
        lr=1e-6,
        beta=0.1,
        seed=options.seed,
    )


def _measure(workload: SupervisedWorkload, options: argparse.Namespace) -> dict[str, Any]:
    parameters = write_workload(workload, SHAPES[options.shape], options.data, options.max_len)
    lengths = [length for row in workload.rows() for length in lengths_of(row)]
    environment = {"OMP_NUM_THREADS": str(workload.threads), "TOKENIZERS_PARALLELISM": "false"}
    with ExitStack() as stack:
        sides = {}
        for name in options.sides:
            sides[name] = Side.start(SIDES[name], workload, environment)
            stack.callback(sides[name].end)
        for name in options.sides:  # the first epoch allocates, and is not counted
            with console.status(f"{workload.task}: {name} starts"):
                sides[name].play()
        with console.status(f"{workload.task}: turns of one epoch"):
            turns = take_turns(lambda name: sides[name].play(), options.sides, options.rounds, repeats=options.repeats)
    return {
        "parameters": parameters,
        "sequences": len(lengths),
        "tokens": sum(lengths),
        "mean_length": statistics.mean(lengths),
        "max_length": max(lengths),
        **summary(turns, sum(lengths)),
    }


def summary(turns: Mapping[str, Turns], tokens: int) -> dict[str, Any]:
    """Medians of every side over its turns, each of so many tokens, and ours against each other side."""
    sides = {name: _side(record, tokens) for name, record in turns.items()}
    ratios = {}
    if "ours" in sides:
        ours = sides["ours"]
        for name, side in sides.items():
            if name != "ours":
                measures = ("tokens_per_second", "peak", "peak_above_libraries")
                ratios[name] = {measure: ours[measure] / side[measure] for measure in measures}
    return {"sides": sides, "ratios": ratios}


def _side(record: Turns, tokens: int) -> dict[str, Any]:
    memories = [turn.details for turn in record.kept]
    return {
        "tokens_per_second": tokens / record.seconds(),
        "seconds": record.seconds(),
        "each_seconds": [turn.seconds for turn in record.kept],
        "phases": record.phases(),
        "peak": max(memory.peak for memory in memories),
        "peak_above_libraries": max(memory.peak - memory.libraries for memory in memories),
        "rounds": len(record.kept),
        "discarded": record.discarded,
        "disturbed": record.disturbed,
        "core_seconds": statistics.median(load.own for load in record.loads),
        "cores_of_others": statistics.median(load.others for load in record.loads),
        "cores_of_idle_sides": statistics.median(load.idle for load in record.loads),
    }


def title(task: str, result: Mapping[str, Any]) -> str:
    return (
        f"{task}: {result['parameters'] / 1e6:.1f} M parameters; {result['sequences']} sequences of "
        f"{result['mean_length']:.0f} tokens, the longest {result['max_length']}"
    )


def table(result: Mapping[str, Any]) -> Table:
    """One column for each side."""
    sides = result["sides"]
    shown = Table()
    shown.add_column("")
    for name in sides:
        shown.add_column(name, justify="right")
    rows: dict[str, Any] = {
        "tokens per second": lambda side: f"{side['tokens_per_second']:.0f}",
        "seconds of an epoch": lambda side: f"{side['seconds']:.2f}",
        "core-seconds of an epoch": lambda side: f"{side['core_seconds']:.2f}",
        "peak memory, MiB": lambda side: f"{side['peak'] / MIB:.0f}",
        "above its libraries, MiB": lambda side: f"{side['peak_above_libraries'] / MIB:.0f}",
        "rounds": lambda side: str(side["rounds"]),
        "discarded (others were busy)": lambda side: str(side["discarded"]),
        f"kept above {QUIET_CORES} cores of others": lambda side: str(side["disturbed"]),
        "cores of others": lambda side: f"{side['cores_of_others']:.2f}",
        "cores of idle sides": lambda side: f"{side['cores_of_idle_sides']:.2f}",
    }
    for label, cell in rows.items():
        shown.add_row(label, *map(cell, sides.values()))
    for phase in dict.fromkeys(phase for side in sides.values() for phase in side["phases"]):
        cells = (side["phases"].get(phase) for side in sides.values())
        shown.add_row(f"{phase}, seconds", *("" if cell is None else f"{cell:.2f}" for cell in cells))
    return shown


def remarks(result: Mapping[str, Any]) -> list[str]:
    """The ratios, those to TRL's default against their aims, and what must be said beside them."""
    lines = []
    for name, ratio in result["ratios"].items():
        speed, memory = ratio["tokens_per_second"], ratio["peak"]
        aims = ("", "")
        if name == "trl":
            aims = (
                f" (aim >= {SPEED_AIM:g}: {'met' if speed >= SPEED_AIM else 'missed'})",
                f" (aim <= {MEMORY_AIM:g}: {'met' if memory <= MEMORY_AIM else 'missed'})",
            )
        lines.append(
            f"ours / {name}: tokens per second {speed:.2f}{aims[0]}, peak memory {memory:.2f}{aims[1]}, of what is "
            f"above the libraries {ratio['peak_above_libraries']:.2f}"
        )
    if any(side["disturbed"] for side in result["sides"].values()):
        lines.append("The machine was not quiet: these figures are worth little, take them again.")
    return lines


if __name__ == "__main__":
    sys.exit(main())
