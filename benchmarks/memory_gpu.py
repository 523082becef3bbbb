"""The planner's peaks beside those that torch measures on a GPU: `python benchmarks/memory_gpu.py`.

Never run: no GPU was at hand. Every configuration is trained in a process of its own, by two steps of our engine; the
second is measured by `torch.cuda.max_memory_allocated` and `max_memory_reserved`. Contexts are no part of either.
`--rl FOLDER` reads what the runs of `openrlhf-ext rl` in that folder (colocated, vLLM asleep and awake) have in
their metrics.jsonl: `memory/<role>/<phase>/predicted_gb` and `measured_gb`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from memory_grid import Configuration, Sizes, build_engine, hf_config, model_run, play, write_model

from openrlhf_ext.models.spec import LoraSpec
from openrlhf_ext.plan import states
from openrlhf_ext.plan.moments import transient_terms
from openrlhf_ext.plan.processes import CUBLAS_WORKSPACE
from openrlhf_ext.plan.shapes import read_shape

SIZES = Sizes(hidden=2048, layers=16, heads=16, kv_heads=8, head_dim=128, ffn=6144, vocab=64000)
"""About 0.9 B weights: large enough for the allocator's rounding to be small, small enough for one card."""
WAYS: dict[str, dict[str, Any]] = {"full": {}, "LoRA": {"lora": LoraSpec(64)}}
WAYS["QLoRA"] = {"lora": LoraSpec(64), "load_in_4bit": True}
COMMANDS: dict[str, dict[str, Any]] = {
    "sft": {"objective": "sft", "learned": 0.7},
    "rm": {"objective": "pairs", "kind": "reward"},
    "dpo": {"objective": "pairs", "learned": 0.5},
}
LENGTHS = ((512,) * 4, (2048,) * 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", metavar="PART", help="configurations with one of these in their name")
    parser.add_argument("--rl", type=Path, metavar="FOLDER", help="of runs of openrlhf-ext rl, to be read instead")
    options = parser.parse_args()
    if options.rl is not None:
        return _report(list(of_runs(options.rl)))
    if not torch.cuda.is_available():
        print("There is no GPU here, so nothing can be measured.", file=sys.stderr)
        return 2
    return _report([_compared(c) for c in grid() if not options.only or any(p in c.name for p in options.only)])


def grid() -> Iterator[Configuration]:
    for command, what in COMMANDS.items():
        for way, how in WAYS.items():
            for checkpointing in (True, False):
                for lengths in LENGTHS:
                    name = f"{command}, {way}, {lengths[0]} tokens{', checkpointing' if checkpointing else ''}"
                    yield Configuration(
                        name, "qwen3", SIZES, lengths=lengths, checkpointing=checkpointing, **what, **how
                    )


def of_runs(folder: Path) -> Iterator[tuple[str, int, int, int]]:
    """From the metrics of every run below the folder: the last figures of each role and phase."""
    for path in sorted(folder.rglob("metrics.jsonl")):
        last: dict[str, float] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            last |= {key: value for key, value in json.loads(line).items() if key.startswith("memory/")}
        for key in sorted(last):
            if key.endswith("/predicted_gb") and (measured := key.replace("predicted", "measured")) in last:
                yield f"{path.parent.name}: {key.split('/', 1)[1]}", *(int(last[k] * 1e9) for k in (key, measured)), 0


def _compared(c: Configuration) -> tuple[str, int, int, int]:
    """Its name, and bytes: predicted, allocated, reserved."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    answers = context.SimpleQueue()
    process = context.Process(target=_measure, args=(c, answers))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{c.name} failed with exit code {process.exitcode}")
    return c.name, planned(c), *answers.get()


def planned(c: Configuration) -> int:
    """Bytes that torch would have allocated at the peak, its matrix products' workspace with them."""
    run = model_run(c, read_shape(hf_config(c).to_dict(), c.name), gpu=True)
    terms = [*states.state_terms(run), *transient_terms(run)]
    return CUBLAS_WORKSPACE + sum(term.bytes for term in terms if "train" in term.phases and term.where == "gpu")


def _measure(c: Configuration, answers: Any) -> None:
    from openrlhf_ext.device import choose_device
    from openrlhf_ext.engine.process import init_process

    device = choose_device("cuda")
    init_process(device, 0, 1, 0, "127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as folder:
        write_model(c, Path(folder))
        engine = build_engine(c, folder, device)
    play(c, engine)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    play(c, engine)
    answers.put((torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()))


def _report(found: list[tuple[str, int, int, int]]) -> int:
    if not found:
        print("There is nothing to compare.", file=sys.stderr)
        return 2
    print(f"{'configuration':48} {'predicted MB':>12} {'allocated MB':>12} {'error':>8} {'reserved MB':>12}")
    for name, predicted, allocated, reserved in found:
        error = predicted / allocated - 1.0
        print(f"{name:48} {predicted / 1e6:12.1f} {allocated / 1e6:12.1f} {error:+8.2%} {reserved / 1e6:12.1f}")
    errors = [abs(predicted / allocated - 1.0) for _, predicted, allocated, _ in found]
    print(f"median error {statistics.median(errors):.2%}, worst error {max(errors):.2%}, {len(found)} configurations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
