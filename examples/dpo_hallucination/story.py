"""The hallucination pipeline from data to a decision; each step is a command you could type.

    python examples/dpo_hallucination/story.py MEDHALLU.jsonl                # a tiny model, on a CPU or a GPU
    python examples/dpo_hallucination/story.py MEDHALLU.jsonl --model Qwen/Qwen3-0.6B --judge Qwen/Qwen3-4B

SFT (stage A), its evaluation, DPO (stage B), its evaluation, both compared; then 20 outputs are judged, the judgements
held against the judge's, and exported as preferences, from which DPO goes on (stage C). docs/hallucination.md walks
through it. Without --judged a scripted stand-in judges by the rule of rater.py, so that the story runs unattended.
Every flag that is not listed here goes to `openrlhf-ext sft` and `dpo`. What is done already in --output is not done
again.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import convert
import rater

from openrlhf_ext.rewards.judge.prompt import Case, write_prompt
from openrlhf_ext.rewards.judge.rubric_file import load_rubric

HERE = Path(__file__).resolve().parent
PROGRAM = [sys.executable, "-m", "openrlhf_ext.cli.main"]
JUDGED_ITEMS = 20
TINY_ROWS = 200  # minutes on two cores; a tiny model would not learn more from more
TINY_DPO_LR = "2e-4"  # that of its SFT would end what little language it has
TINY_COLUMN = ("column: 4000", "column: 400")  # characters of the abstract that a tiny judge is shown
READER, STAND_IN = "reader", "scripted-stand-in"


def main() -> int:
    parser = argparse.ArgumentParser(prog="story.py", allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("medhallu", type=Path, help="MedHallu's rows as JSON Lines")
    parser.add_argument("--output", type=Path, default=Path("outputs/hallucination"), help="folder of everything made")
    parser.add_argument("--model", help="a Hugging Face folder or hub name (not set: a tiny model made here)")
    parser.add_argument("--judge", help="the judge, likewise (not set: a tiny one that learns from MedHallu's labels)")
    parser.add_argument("--rows", type=int, help=f"at most so many of MedHallu's rows (tiny model: {TINY_ROWS})")
    parser.add_argument("--judged", type=Path, help="a folder in which a reader has judged (--assess.folder)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where models run")
    own, flags = parser.parse_known_args()
    start = time.monotonic()
    story = Story(own, flags)
    try:
        story.tell()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n== done in {time.monotonic() - start:.0f} s; everything is in {own.output}")
    return 0


class Story:
    """The commands, in order. `flags` go to sft and dpo."""

    def __init__(self, own: argparse.Namespace, flags: Sequence[str]) -> None:
        self.own, self.out, self.flags = own, Path(own.output), list(flags)
        self.device = ["--device", own.device]
        self.rubric = self.out / "rubric.yaml"
        self.train, self.test = self.out / "data" / "train.jsonl", self.out / "data" / "test.jsonl"

    def tell(self) -> None:
        self.rows()
        model = self.own.model or self.tiny_model("tiny")
        judge = self.own.judge or self.tiny_judge()
        self.stage("sft", "A", model, self.train)
        self.evaluate("A", judge)
        self.stage("dpo", "B", self.trained("A"), self.train)
        self.evaluate("B", judge)
        self.compare("A", "B")
        judged = self.assess()
        preferences = self.export(judged)
        if preferences is None:
            print("no judgement became a pair (see above): there is no stage C")
            return
        self.stage("dpo", "C", self.trained("B"), preferences)
        self.evaluate("C", judge)
        self.compare("B", "C")

    def rows(self) -> None:
        """The pairs of `convert.py`, and a corpus for the tokenizer of a tiny model."""
        if self.test.exists():
            return
        most = self.own.rows or (None if self.own.model else TINY_ROWS)
        pairs = list(convert.pairs_of(convert.read(self.own.medhallu)))[:most]
        held_out = pairs[:: convert.HELD_OUT]
        trained = [pair for number, pair in enumerate(pairs) if number % convert.HELD_OUT]
        convert.write(self.train, trained)
        rubric = (HERE / "rubric.yaml").read_text(encoding="utf-8")
        self.rubric.write_text(rubric if self.own.judge else rubric.replace(*TINY_COLUMN), encoding="utf-8")
        texts = (f"{pair['prompt']}\n{pair['chosen']}\n{pair['rejected']}\n" for pair in trained)
        (self.out / "data" / "corpus.txt").write_text("".join(texts), encoding="utf-8")
        convert.write(self.test, held_out)

    def tiny_model(self, name: str) -> str:
        folder, corpus = self.out / name, self.out / "data" / "corpus.txt"
        if not folder.exists():
            made = ["--output", str(folder), "--corpus", str(corpus), "--vocab", "4096"]
            made += ["--layers", "2", "--intermediate", "256"]
            call("a tiny model and its tokenizer", ["tiny-model", *made])
        return str(folder)

    def tiny_judge(self) -> str:
        """A second tiny model that learns to judge from the labels of the training rows."""
        folder, data = self.out / "judge", self.out / "data" / "judge_sft.jsonl"
        if not (folder / "result.json").exists():
            write_judged(self.train, self.rubric, data)
            tiny = self.tiny_model("judge_tiny")
            learn = ["sft", "--config", str(HERE / "judge_sft.yaml"), "--model.model_name_or_path", tiny]
            learn += ["--data.dataset", str(data), *self.device, *folders(folder)]
            call("a tiny judge learns from MedHallu's labels", learn)
            run = ["judge", "calibrate", *self.judge(str(folder)), "--data.dataset", str(self.test), *self.device]
            run += ["--data.prompt_key", "prompt", "--data.right_key", "chosen", "--data.wrong_key", "rejected"]
            run += ["--calibrate.repeats", "1", "--calibrate.order_rows", "0"]
            call("the judge against the labels of held-out rows", run)
        return str(folder / "model")

    def judge(self, model: str) -> list[str]:
        path = Path(model) / "model"
        return ["--judge.model_name_or_path", str(path if path.is_dir() else model), "--judge.prompt", str(self.rubric),
                "--judge.max_len", "4096", "--judge.max_new_tokens", "64"]  # fmt: skip

    def stage(self, command: str, name: str, model: str, rows: Path) -> None:
        folder = self.out / name
        if (folder / "result.json").exists():
            return
        configs = [HERE / f"{command}.yaml"] + ([] if self.own.model else [HERE / "tiny.yaml"])
        run = [command, "--config", *map(str, configs), "--model.model_name_or_path", model]
        if not self.own.model and command == "dpo":
            run += ["--adam.lr", TINY_DPO_LR]
        run += ["--data.dataset", str(rows), "--eval.dataset", str(self.test), "--eval.split", "train"]
        if name == "C":  # a few rows: small steps of them
            run += ["--train.batch_size", "4", "--lr_warmup_ratio", "0"]
        call(f"stage {name}: {command}", [*run, *self.device, *folders(folder), *self.flags])

    def trained(self, name: str) -> str:
        """What the next stage goes on from: adapters where there are any."""
        adapters = self.out / name / "adapters"
        return str(adapters if adapters.is_dir() else self.out / name / "model")

    def evaluate(self, name: str, judge: str) -> None:
        folder = self.out / f"eval_{name}"
        run = ["eval", "--model.model_name_or_path", str(self.out / name), "--model.name", f"stage {name}"]
        run += ["--data.dataset", str(self.test), "--data.input_key", "prompt", "--data.label_key", "chosen"]
        run += ["--data.context_key", "abstract", "--eval.scorer", "judge", "--eval.hallucination", *self.judge(judge)]
        run += ["--eval.group_by", "difficulty", "--eval.max_new_tokens", "64", "--eval.output", str(folder)]
        run += ["--eval.resume"] * folder.exists() + ["--ds.param_dtype", "bf16" if self.own.model else "fp32"]
        call(f"the hallucination rate of stage {name}, by the judge", [*run, *self.device])

    def compare(self, first: str, second: str) -> None:
        folders_of = [str(self.out / f"eval_{name}") for name in (first, second)]
        call(f"is stage {second} better than {first}?", ["eval", "--compare", *folders_of])

    def assess(self) -> Path:
        """The folder of the judgements: a reader's, or the stand-in's."""
        answers = [str(self.out / f"eval_{name}") for name in "AB"]
        what = ["assess", "serve", "--assess.answers", *answers, "--assess.items", str(JUDGED_ITEMS)]
        by_hand = [*what, "--assess.folder", str(self.out / "assess"), "--assess.raters", READER]
        print(f"\n== {JUDGED_ITEMS} outputs to judge. By a reader, on a page (or with --tui in the terminal):")
        print(f"   openrlhf-ext {shlex.join(by_hand)}\n   and then this again with --judged {self.out / 'assess'}")
        if self.own.judged is not None:
            return Path(self.own.judged)
        folder = self.out / "assess_scripted"
        serve = [*what, "--assess.folder", str(folder), "--assess.raters", STAND_IN, "--port", "0"]
        print("   No reader has judged: a scripted stand-in does, by the rule of rater.py and not by reading.")
        print(f"   openrlhf-ext {shlex.join(serve)}\n", flush=True)
        with subprocess.Popen([*PROGRAM, *serve], stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                link = next((found[0] for line in server.stdout if (found := re.search(r"http://\S+/", line))), None)
                if link is None:
                    raise ValueError(f"the page did not start (exit code {server.wait()}).")
                print(f"   {rater.judge_all(link)} judged by the stand-in")
            finally:
                server.terminate()
        return folder

    def export(self, judged: Path) -> Path | None:
        """What the judgements say of the stages and of the judge, and the pairs that they make (None: none)."""
        folder = ["--assess.folder", str(judged)]
        call("what was judged, and how far the judge agrees", ["assess", "report", *folder])
        pairs = self.out / "data" / f"{judged.name}_pairs.jsonl"
        run = ["assess", "export", *folder, "--export.overwrite"]
        call("all judgements", [*run, "--export.judgements", str(pairs.with_name(f"{judged.name}.jsonl"))])
        run += ["--export.preferences", str(pairs), "--export.with_references"]
        done = call("judgements as preferences", run, also=2)  # 2: there are none
        return None if done else pairs


def write_judged(pairs: Path, rubric_file: Path, target: Path) -> None:
    """The questions that the judge will be asked, of true and hallucinated answers in turn, with the labels."""
    rubric = load_rubric(rubric_file)
    rows = []
    for line in pairs.open(encoding="utf-8"):  # not splitlines: MedHallu holds line separators of Unicode's own
        pair = json.loads(line)
        for key in ("chosen", "rejected"):
            case = Case(pair["prompt"], pair[key], pair["chosen"], pair)
            verdict = json.dumps({"hallucinated": key == "rejected"})
            rows.append({"question": write_prompt(rubric, case).text, "verdict": verdict})
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def folders(folder: Path) -> list[str]:
    return ["--ckpt.output_dir", str(folder), "--ckpt.path", str(folder / "checkpoints")]


def call(title: str, command: Sequence[str], also: int = 0) -> int:
    """Run one command of ours; its failure is ours, with its exit code, unless that is `also` allowed."""
    print(f"\n== {title}\n   openrlhf-ext {shlex.join(command)}\n", flush=True)
    code = subprocess.run([*PROGRAM, *command], check=False).returncode
    if code not in (0, also):
        sys.exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
