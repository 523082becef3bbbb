"""What the driver itself costs when there are many ranks and long answers: `python benchmarks/control_plane.py`.

The real loop (`trainers.rl.train_rl`), the real ports of `cluster/` and a real Ray of several nodes; only who computes
is missing: engines and ranks are echo workers (`sides/echo.py`), actors without torch that answer at once. What is
measured is the processor time of the driver's process, all its threads together, for a whole step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from report import versions
from rich.console import Console
from rich.table import Table

from openrlhf_ext.cluster.environment import prepare_environment

console = Console(width=110)
AIM_SECONDS = 3.0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512, 1024, 2048], help="of every answer")
    parser.add_argument("--steps", type=int, default=10, help="counted steps of the longest answers")
    parser.add_argument("--short-steps", type=int, default=4, help="counted steps of the other lengths")
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--ranks-per-node", type=int, default=8, help="of each role")
    parser.add_argument("--raylets", type=int, default=16, help="real Ray nodes; each holds nodes / raylets")
    parser.add_argument("--processes", type=int, default=32, help="real echo workers that the ranks are spread over")
    parser.add_argument("--optimizer-steps", type=int, default=4)
    parser.add_argument("--micro-rows", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write every figure here")
    return parser.parse_args(argv)


def main() -> int:
    chosen = parse()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    prepare_environment(None, "127.0.0.1")
    from sides.control_run import EchoCluster, measure

    started = time.monotonic()
    with EchoCluster(chosen) as cluster:
        console.print(cluster.described(time.monotonic() - started), soft_wrap=True)
        runs = []
        for tokens in chosen.tokens:
            steps = chosen.steps if tokens == max(chosen.tokens) else chosen.short_steps
            runs.append(measure(cluster, chosen, tokens, steps))
            console.print(line(runs[-1]), soft_wrap=True)
        heavy = cluster.heavy()
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(["ray", "torch", "numpy", "pyarrow"]),
        "asked": {name: str(value) for name, value in vars(chosen).items()},
        "cluster": cluster.facts,
        "heavy_imports_of_workers": heavy,
        "runs": runs,
        "fit": fit(runs),
        "peak_rss_of_driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    console.print(table(runs))
    for remark in remarks(result):
        console.print(remark, soft_wrap=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def line(run: Mapping[str, Any]) -> str:
    each = ", ".join(f"{seconds:.2f}" for seconds in run["each_cpu"])
    return f"{run['tokens_per_step'] / 1e6:.1f} M tokens: {each} s of processor time"


def fit(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The line through the medians: seconds = fixed + slope x millions of tokens; the residual is the largest."""
    if len(runs) < 3:
        return {}
    x = np.array([run["tokens_per_step"] / 1e6 for run in runs])
    y = np.array([run["cpu"] for run in runs])
    slope, fixed = np.polyfit(x, y, 1)
    off = np.abs(y - (fixed + slope * x))
    total = ((y - y.mean()) ** 2).sum()
    return {
        "fixed_s": float(fixed), "s_per_million_tokens": float(slope), "largest_residual_s": float(off.max()),
        "r_squared": float(1.0 - (off**2).sum() / total) if total else 1.0,
    }  # fmt: skip


def table(runs: Sequence[Mapping[str, Any]]) -> Table:
    shown = Table(title="the driver's processor time, seconds per step (medians)", title_justify="left")
    shown.add_column("")
    for run in runs:
        shown.add_column(f"{run['answer_tokens']} tokens", justify="right")
    for phase in dict.fromkeys(phase for run in runs for phase in run["phases"]):
        shown.add_row(phase, *(f"{run['phases'].get(phase, 0.0):.2f}" for run in runs))
    shown.add_section()
    shown.add_row("step", *(f"{run['cpu']:.2f}" for run in runs), style="bold")
    shown.add_row("slowest step", *(f"{max(run['each_cpu']):.2f}" for run in runs))
    shown.add_section()
    for name, key, unit in (
        ("rollouts", "rollouts", 1),
        ("M tokens", "tokens_per_step", 1e6),
        ("wall clock s", "wall", 1),
        ("steps", "steps", 1),
        ("driver's peak MiB", "driver_peak_mib", 1),
        ("/dev/shm at most MiB", "store_peak_mib", 1),
    ):
        shown.add_row(name, *(f"{run[key] / unit:.4g}" for run in runs))
    return shown


def remarks(result: Mapping[str, Any]) -> list[str]:
    longest = max(result["runs"], key=lambda run: run["tokens_per_step"])
    met = "met" if longest["cpu"] < AIM_SECONDS else "missed"
    lines = [f"aim under {AIM_SECONDS:g} s at {longest['tokens_per_step'] / 1e6:.1f} M tokens: {met}"]
    if line := result["fit"]:
        lines.append(
            f"{line['fixed_s']:.2f} s + {1e3 * line['s_per_million_tokens']:.1f} ms for a million tokens; largest "
            f"residual {line['largest_residual_s']:.2f} s, R^2 {line['r_squared']:.4f}"
        )
    lines.append(f"echo workers imported of torch, vllm, deepspeed, transformers: {result['heavy_imports_of_workers']}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
