"""The main job from nothing: a tiny model and a tiny judge, then RL; each step is a command you could type.

`./quick_start.sh` runs this. The judge, a second tiny model that SFT taught to grade, gives the rewards of training;
evaluation is by the rule. With `--actor.model_name_or_path` your own model takes the place of the tiny one and its
warm-up, and the rule rewards it unless you name a judge; every flag that is not listed here goes to `openrlhf-ext rl`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any

from grading import agreement_on_rollouts, write_grading
from task import write_task

HERE = Path(__file__).resolve().parent
STEPS, PROMPTS_PER_STEP = 80, 32
DEMONSTRATIONS = 8000
HELD_OUT = 100
GRADED, GRADED_HELD_OUT = 6000, 400  # answers that the judge learns from, and is held against


def main() -> int:
    parser = argparse.ArgumentParser(prog="quick_start.sh", allow_abbrev=False, description=__doc__)
    parser.add_argument(
        "--reward",
        choices=("judge", "rule"),
        help="who rewards in training: a tiny judge, or the rule (not set: judge; the rule for a model of your own)",
    )
    parser.add_argument("--json", type=Path, help="write the result here as well")
    parser.add_argument("--output", type=Path, help="folder of everything made (not set: a new one in outputs/)")
    parser.add_argument("--train.seed", dest="seed", type=int, default=42, help="of data, weights and sampling")
    own, flags = parser.parse_known_args()
    start = time.monotonic()
    out: Path = own.output or _new_folder(Path("outputs/quick_start"))
    resumes = _names(flags, "ckpt.load_enable")
    if out.exists() and any(out.iterdir()) and not resumes:
        print(
            f"--output {out} is not empty: name another folder, or continue its run with --ckpt.load_enable.",
            file=sys.stderr,
        )
        return 2
    data, rl_out = out / "data", out / "rl"
    write_task(data, demonstrations=DEMONSTRATIONS, prompts=STEPS * PROMPTS_PER_STEP, held_out=HELD_OUT, seed=own.seed)

    judge = _judge_of(own.reward, flags)
    configs = [HERE / "rl.yaml"]
    if not _names(flags, "actor.model_name_or_path"):
        if not (resumes and (out / "sft" / "result.json").exists()):
            warm_up(out, data, own.seed, _device(flags))
        flags = ["--actor.model_name_or_path", str(out / "sft" / "model"), *flags]
        configs.append(HERE / "tiny.yaml")

    run = ["rl", "--config", *map(str, configs), "--data.prompt_dataset", str(data / "train.jsonl")]
    run += ["--eval.dataset", str(data / "held_out.jsonl"), "--eval.steps", "20"]
    if judge == "tiny" and not (resumes and (out / "judge" / "result.json").exists()):
        train_judge(out, data, own.seed, _device(flags))
    run += _rewards(judge, out)
    run += ["--ckpt.output_dir", str(rl_out), "--ckpt.path", str(rl_out / "checkpoints")]
    run += ["--train.seed", str(own.seed), *flags]
    call("RL: Ray, DeepSpeed, vLLM", run)
    # A flag of the user's may have moved the output.
    rl_out = Path(_value(flags, "ckpt.output_dir") or rl_out)
    result = json.loads((rl_out / "result.json").read_text(encoding="utf-8"))
    if judge == "tiny":
        result["judge"] = _judged(out / "judge", Path(result["rollouts"]))
    result["seconds"] = round(time.monotonic() - start, 1)
    if own.json:
        own.json.parent.mkdir(parents=True, exist_ok=True)
        own.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _say(result, rl_out)
    return 0


def _new_folder(wanted: Path) -> Path:
    """`wanted`, or the first of wanted_2, wanted_3, ... that is not there: no run overwrites another."""
    names = chain([wanted], (wanted.with_name(f"{wanted.name}_{number}") for number in count(2)))
    return next(folder for folder in names if not folder.exists())


def warm_up(out: Path, data: Path, seed: int, device: list[str]) -> None:
    model = ["--output", str(out / "tiny"), "--corpus", str(data / "corpus.txt"), "--seed", str(seed)]
    call("a tiny model and its tokenizer", ["tiny-model", *model, "--layers", "2", "--intermediate", "256"])
    sft = ["sft", "--config", str(HERE / "sft.yaml"), "--model.model_name_or_path", str(out / "tiny")]
    sft += ["--data.dataset", str(data / "sft.jsonl"), "--train.seed", str(seed), *device]
    sft += ["--ckpt.output_dir", str(out / "sft"), "--ckpt.path", str(out / "sft" / "checkpoints")]
    call("a warm-up on careless demonstrations", sft)


def train_judge(out: Path, data: Path, seed: int, device: list[str]) -> None:
    """A second tiny model that learns to grade, and what it is worth before anything is trained by it."""
    folder, tiny = out / "judge", out / "judge_tiny"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "rubric.yaml", folder)
    write_grading(data, folder / "rubric.yaml", rows=GRADED, held_out=GRADED_HELD_OUT, seed=seed)
    model = ["--output", str(tiny), "--corpus", str(data / "judge_corpus.txt"), "--seed", str(seed), "--phrases"]
    call(
        "a tiny judge and its tokenizer",
        ["tiny-model", *model, "--layers", "2", "--intermediate", "256", "--vocab", "2000"],
    )
    sft = ["sft", "--config", str(HERE / "judge_sft.yaml"), "--model.model_name_or_path", str(tiny)]
    sft += ["--data.dataset", str(data / "judge_sft.jsonl"), "--train.seed", str(seed), *device]
    sft += ["--ckpt.output_dir", str(folder), "--ckpt.path", str(folder / "checkpoints")]
    call("the judge learns to grade", sft)
    rows = ["--data.dataset", str(data / "judge_held_out.jsonl"), "--data.prompt_key", "question"]
    rows += ["--data.response_key", "response", "--data.label_key", "right", "--data.reference_key", "answer"]
    call("the judge against the rule", ["judge", "calibrate", *_tiny_judge(folder), *device, *rows])


def call(title: str, command: list[str]) -> None:
    """Run one command of ours; its failure is ours, with its exit code."""
    print(f"\n== {title}\n   openrlhf-ext {shlex.join(command)}\n", flush=True)
    done = subprocess.run([sys.executable, "-m", "openrlhf_ext.cli.main", *command], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _judge_of(reward: str | None, flags: list[str]) -> str:
    """Who rewards: `tiny`, `rule`, or a judge of the user's (`own`)."""
    if _names(flags, "judge.model_name_or_path") or _names(flags, "judge.url"):
        return "own"
    if reward is None:
        reward = "rule" if _names(flags, "actor.model_name_or_path") else "judge"
    return {"judge": "tiny", "rule": "rule"}[reward]


def _rewards(judge: str, out: Path) -> list[str]:
    """Training by the rule, or by a judge; evaluation by the rule always."""
    rule = str(HERE / "reward.py")
    if judge == "rule":
        return ["--reward.remote_url", rule]
    return ["--eval.remote_url", rule, *(_tiny_judge(out / "judge") if judge == "tiny" else [])]


def _tiny_judge(folder: Path) -> list[str]:
    """It answers in a few tokens, and reads little."""
    named = ["--judge.model_name_or_path", str(folder / "model"), "--judge.prompt", str(folder / "rubric.yaml")]
    return [*named, "--judge.max_new_tokens", "16", "--judge.max_len", "512"]


def _judged(folder: Path, rollouts: Path) -> dict[str, Any]:
    """The judge's agreement with the rule: on labelled answers before training, and on what training judged."""
    before = json.loads((folder / "rubric_calibration" / "calibration.json").read_text(encoding="utf-8"))["agreement"]
    during = agreement_on_rollouts(rollouts)
    return {
        "accuracy_before": before["accuracy"]["value"], "kappa_before": before["kappa"]["value"],
        "accuracy_on_rollouts": during.accuracy.value, "kappa_on_rollouts": during.kappa.value,
        "rollouts": during.n, "wrong_but_rewarded": during.false_positives, "right_but_not": during.false_negatives,
    }  # fmt: skip


def _names(flags: list[str], name: str) -> bool:
    return any(flag.split("=")[0] == f"--{name}" for flag in flags)


def _value(flags: list[str], name: str) -> str | None:
    """The last value that the flags give this name."""
    values = [flag.partition("=")[2] for flag in flags if flag.startswith(f"--{name}=")]
    values += [after for flag, after in pairwise(flags) if flag == f"--{name}"]
    return values[-1] if values else None


def _device(flags: list[str]) -> list[str]:
    """The choice of device, which the warm-up shares with the RL job."""
    chosen = _value(flags, "device") or _value(flags, "device.type")
    return ["--device.type", chosen] if chosen else []


def _say(result: dict[str, Any], rl_out: Path) -> None:
    print(f"\n== done in {result['seconds']:.0f} s, {result['steps']} RL steps")
    before, after = result["reward_before"], result["reward_after"]
    print(f"   held-out reward   {before:.3f} before RL, {after:.3f} after, by the rule")
    if judge := result.get("judge"):
        accuracy, kappa = judge["accuracy_before"], judge["kappa_before"]
        print(f"   judge and rule    accuracy {accuracy:.3f}, kappa {kappa:.3f}, on labelled answers before RL")
        accuracy, kappa = judge["accuracy_on_rollouts"], judge["kappa_on_rollouts"]
        print(
            f"                     accuracy {accuracy:.3f}, kappa {kappa:.3f}, on the {judge['rollouts']} of training"
        )
    print(f"   model             {result['checkpoint']}")
    print(f"   rollouts          {result['rollouts']}")
    print(f"   metrics, config   {rl_out.absolute()}")
    print(f"   logs              {(rl_out / 'logs').absolute()}")
    print("\nNext, the same job on a model of your own:")
    print("   ./quick_start.sh --actor.model_name_or_path Qwen/Qwen3-0.6B --output outputs/qwen3")
    print("or GSM8K: see examples/gsm8k/train.sh")


if __name__ == "__main__":
    sys.exit(main())
