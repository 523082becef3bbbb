"""Do the algorithms learn? Held-out reward of the quick start's task, each from the same start, over several seeds.

`python benchmarks/learning.py` runs every algorithm on every seed, one job at a time, and prints the table.
A job that is already done (same command, same folder) is not run again, so an interrupted table goes on.
`--set async` compares the synchronous run with runs that generate ahead of training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
QUICK_START = REPOSITORY / "examples" / "quick_start"
sys.path.insert(0, str(QUICK_START))

from run import call, warm_up  # noqa: E402
from task import write_task  # noqa: E402

# Two optimizer steps for each rollout step, so that ratios move and the clipped losses differ.
SHARED = "--rollout.batch_size 32 --rollout.n_samples_per_prompt 8 --train.batch_size 128 --algo.kl.init_coef 0"
CRITIC = "--critic.num_gpus_per_node 1 --critic.adam.lr 1e-3 --critic.lr_warmup_ratio 0.05 --critic.freezing_steps 4"
ESTIMATOR = "--algo.advantage.estimator"
SETS: Mapping[str, Mapping[str, str]] = {
    "algorithms": {
        "PPO with critic": f"{ESTIMATOR} gae {CRITIC} --algo.advantage.lambd 0.95",
        "REINFORCE++": f"{ESTIMATOR} reinforce",
        "RLOO": f"{ESTIMATOR} rloo",
        "GRPO": f"{ESTIMATOR} group_norm --actor.loss_agg_mode seq-mean-token-mean",
        "Dr.GRPO": f"{ESTIMATOR} dr_grpo --actor.loss_agg_mode seq-mean-token-sum-norm",
        "GSPO": f"{ESTIMATOR} group_norm --actor.policy_loss_type gspo --actor.loss_agg_mode seq-mean-token-mean "
        "--actor.eps_clip_low_high 0.03 0.04",
        "CISPO": f"{ESTIMATOR} group_norm --actor.policy_loss_type cispo --actor.eps_clip_low_high 1.0 4.0",
    },
    "async": {
        "synchronous": f"{ESTIMATOR} group_norm",
        "one step ahead": f"{ESTIMATOR} group_norm --train.async_enable --train.async_queue_size 1",
        "one step ahead, partial rollouts": f"{ESTIMATOR} group_norm --train.async_enable "
        "--train.async_queue_size 1 --train.partial_rollout_enable",
    },
}
# Engines and training share the quick start's GPU; a run that generates ahead has an engine beside the trainer.
PLACEMENT = {"algorithms": "", "async": "--train.no_colocate_all --vllm.no_enable_sleep --ds.no_enable_sleep"}
SEEDS = {"algorithms": (1, 2, 3), "async": (1, 2, 3, 4, 5)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="algorithms")
    parser.add_argument("--only", nargs="+", help="these rows of the set")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--steps", type=int, default=40, help="rollout steps of each job")
    parser.add_argument("--output", type=Path, default=Path("outputs/learning"))
    parser.add_argument("--json", type=Path, help="write the table here as well")
    own, flags = parser.parse_known_args()
    variants = {name: f for name, f in SETS[own.set].items() if own.only is None or name in own.only}
    seeds = own.seeds or SEEDS[own.set]
    extra = [*PLACEMENT[own.set].split(), *flags]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for seed in seeds:
        start = _start(own.output / f"seed{seed}", seed, own.steps)
        for name, variant in variants.items():
            rows[name].append(_job(start, name, [*SHARED.split(), *variant.split(), *extra], seed))
            _show(rows)
    if own.json:
        own.json.write_text(json.dumps({"steps": own.steps, "seeds": list(seeds), "rows": rows}, indent=1) + "\n")
    return 0


def _start(folder: Path, seed: int, steps: int) -> Path:
    """The model that all algorithms of this seed start from, and their data: made once."""
    folder = folder.with_name(f"{folder.name}_{steps}steps")
    if not (folder / "sft" / "result.json").exists():
        write_task(folder / "data", demonstrations=8000, prompts=32 * steps, held_out=100, seed=seed)
        warm_up(folder, folder / "data", seed, [])
    return folder


def _job(start: Path, name: str, flags: Sequence[str], seed: int) -> dict[str, Any]:
    out = start / "".join(letter if letter.isalnum() else "_" for letter in name.lower())
    command = ["rl", "--config", str(QUICK_START / "rl.yaml"), str(QUICK_START / "tiny.yaml")]
    command += ["--actor.model_name_or_path", str(start / "sft" / "model"), "--train.seed", str(seed)]
    command += ["--data.prompt_dataset", str(start / "data" / "train.jsonl")]
    command += ["--eval.dataset", str(start / "data" / "held_out.jsonl"), "--ckpt.save_steps", "-1"]
    command += ["--reward.remote_url", str(QUICK_START / "reward.py"), *flags]
    out = _folder_of(out, command)
    if not (out / "result.json").exists():
        began = time.monotonic()
        call(f"{name}, seed {seed}", [*command, "--ckpt.output_dir", str(out), "--ckpt.path", str(out / "checkpoints")])
        _note_time(out, time.monotonic() - began)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return {"seed": seed, "before": result["reward_before"], "after": result["reward_after"], **_curve(out)}


def _folder_of(out: Path, command: Sequence[str]) -> Path:
    """The first folder that is new or holds the result of this very command."""
    number, folder = 1, out
    while (folder / "command.json").exists() and json.loads((folder / "command.json").read_text()) != list(command):
        number += 1
        folder = out.with_name(f"{out.name}_{number}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "command.json").write_text(json.dumps(list(command)))
    return folder


def _note_time(out: Path, seconds: float) -> None:
    (out / "seconds.json").write_text(json.dumps(round(seconds, 1)))


def _curve(out: Path) -> dict[str, Any]:
    """How the training reward went: its mean over the last tenth of the steps, and the seconds of a step."""
    lines = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if "reward" in line]
    tail = steps[-max(1, len(steps) // 10) :]
    return {
        "training": statistics.mean(line["reward"] for line in tail),
        "seconds_per_step": statistics.median(line["seconds/step"] for line in steps),
        "staleness": statistics.mean(line["rollout/staleness"] for line in steps),
        "job_seconds": json.loads((out / "seconds.json").read_text()),
    }


def _show(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    table = Table(title="held-out reward of the sorting task")
    for column in ("", "before", "after, seed by seed", "mean", "worst", "seconds a step", "staleness"):
        table.add_column(column, justify="left" if not column else "right")
    for name, results in rows.items():
        if results:
            after = [result["after"] for result in results]
            table.add_row(
                name,
                f"{statistics.mean(r['before'] for r in results):.3f}",
                "  ".join(f"{reward:.3f}" for reward in after),
                f"{statistics.mean(after):.3f}",
                f"{min(after):.3f}",
                f"{statistics.median(r['seconds_per_step'] for r in results):.2f}",
                f"{statistics.mean(r['staleness'] for r in results):.2f}",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
