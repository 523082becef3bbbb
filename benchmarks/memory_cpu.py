"""The planner's peak of live tensors beside the tracked one: `python benchmarks/memory_cpu.py`.

Every configuration of `memory_grid` is trained by our engine on the CPU, in a process of its own, under `LiveBytes`.
Both figures are of the peak in one optimizer step after the first: weights, optimizer, gradients and all that comes and
goes. `top` is the error of the part above what is live between two steps.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from live_bytes import LiveBytes, all_tensors
from memory_grid import Configuration, build_engine, grid, hf_config, model_run, play, write_model
from transformers.utils import logging

from openrlhf_ext.engine import deepspeed_config
from openrlhf_ext.plan import states
from openrlhf_ext.plan.moments import biggest_moment, transient_terms
from openrlhf_ext.plan.shapes import read_shape

HEADING = f"{'configuration':52} {'predicted MB':>12} {'tracked MB':>12} {'error':>8} {'top':>8}  biggest moment"
SECONDS = 120
"""That one configuration may take on a busy machine."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Bytes. `rest`: those between two steps; `moment` is the planner's name of the biggest."""

    name: str
    predicted: int
    tracked: int
    rest: int
    moment: str

    @property
    def error(self) -> float:
        return self.predicted / self.tracked - 1.0

    @property
    def error_on_top(self) -> float:
        return (self.predicted - self.tracked) / (self.tracked - self.rest)


def main() -> int:
    options = _options()
    chosen = [c for c in grid(options.seed) if not options.only or any(part in c.name for part in options.only)]
    if not chosen:
        print("No configuration has that in its name.", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    start, found = time.monotonic(), []
    print(HEADING)
    for c in chosen:
        found.append(compare(c))
        print(_line(found[-1]), flush=True)
    figures = summary(found)
    print(", ".join(f"{name} {value:.2%}" for name, value in figures.items()))
    print(f"{len(found)} configurations, {time.monotonic() - start:.0f} s")
    if options.json:
        text = json.dumps({"summary": figures, "configurations": [asdict(one) for one in found]}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", metavar="PART", help="configurations with one of these in their name")
    parser.add_argument("--seed", type=int, default=1, help="of the sizes")
    parser.add_argument("--json", type=Path, help="write all figures to this file as well")
    parser.add_argument("--explain", action="store_true", help="list what the tracked peak consisted of")
    return parser.parse_args()


def summary(found: list[Compared]) -> dict[str, float]:
    errors, on_top = [abs(one.error) for one in found], [abs(one.error_on_top) for one in found]
    return {
        "median error": statistics.median(errors),
        "worst error": max(errors),
        "median on top": statistics.median(on_top),
        "worst on top": max(on_top),
    }


def compare(c: Configuration) -> Compared:
    predicted, moment = planned(c)
    tracked, rest = measured(c)
    return Compared(c.name, predicted, tracked, rest, moment)


def planned(c: Configuration) -> tuple[int, str]:
    """Bytes of the peak by the planner, and its moment."""
    states.BUCKET = c.sizes.bucket
    run = model_run(c, read_shape(hf_config(c).to_dict(), c.name))
    terms = [*states.state_terms(run), *transient_terms(run, watched=True)]
    total = sum(term.bytes for term in terms if "train" in term.phases and term.where == "gpu")
    return total, biggest_moment(run, run.passes, watched=True)[0]


def measured(c: Configuration) -> tuple[int, int]:
    """Bytes of the tracked peak, and those that are live between two steps."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=_measure, args=(c, answers), daemon=True)
    process.start()
    process.join(SECONDS)
    if process.is_alive() or answers.empty():
        process.kill()
        raise RuntimeError(f"{c.name} gave no answer in {SECONDS} s")
    answer = answers.get()
    if isinstance(answer, str):
        raise RuntimeError(f"{c.name} failed:\n{answer}")
    return answer


def _measure(c: Configuration, answers: Any) -> None:
    try:
        answers.put(_tracked(c))
    except Exception:  # the parent raises it
        answers.put(traceback.format_exc())


def _tracked(c: Configuration) -> tuple[int, int]:
    from openrlhf_ext.device import choose_device
    from openrlhf_ext.engine.process import init_process

    deepspeed_config.REDUCE_BUCKET_ELEMENTS = c.sizes.bucket
    torch.set_num_threads(1)  # other threads would be those of a process that was not forked
    device = choose_device("cpu")
    init_process(device, 0, 1, 0, "127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as folder:
        write_model(c, Path(folder))
        engine = build_engine(c, folder, device)
    play(c, engine)  # the first step makes the optimizer's state
    tracker = LiveBytes(trace="--explain" in sys.argv)
    tracker.adopt(all_tensors())
    rest = tracker.live
    with tracker:
        play(c, engine)
    if "--explain" in sys.argv:
        for size, number, description in tracker.table_at_peak()[:40]:
            print(f"{size:>12,} {number:>4} x {description}")
    return tracker.peak, rest


def _line(one: Compared) -> str:
    sizes = f"{one.predicted / 1e6:12.3f} {one.tracked / 1e6:12.3f}"
    return f"{one.name:52} {sizes} {one.error:+8.2%} {one.error_on_top:+8.2%}  {one.moment}"


if __name__ == "__main__":
    # All that a configuration's process needs is imported once, before it is forked.
    import openrlhf_ext.engine.deepspeed_engine
    import openrlhf_ext.trainers.objectives  # noqa: F401

    sys.exit(main())
