"""One run of sft, rm or dpo: check the data, plan, train, evaluate, export. One rank is this very process."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.types import OptimizerStep
from openrlhf_ext.cli.held_out import held_out_answers
from openrlhf_ext.cli.launch import Launch
from openrlhf_ext.cli.memory_report import as_result, memory_log, say_peaks, shortage_explained
from openrlhf_ext.cli.preflight import preflight
from openrlhf_ext.cli.rank_files import check_files_of_ranks
from openrlhf_ext.cli.specs import (
    cadence_of,
    goal_of,
    goal_result,
    metrics_file,
    open_store,
    open_tracking,
    split_settings,
    write_config,
)
from openrlhf_ext.cli.supervised_model import (
    Opened,
    base_path,
    check_reference,
    learner_spec,
    make_reference,
    open_learner,
)
from openrlhf_ext.cli.supervised_tasks import Task, dpo_task, dropped_file, rm_task, sft_task
from openrlhf_ext.condition import Reached
from openrlhf_ext.config import Parsed
from openrlhf_ext.data.dropped import write_dropped
from openrlhf_ext.data.length_groups import StepOrder
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.device import Device, choose_device
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.trial import Command
from openrlhf_ext.ports import SupervisedRole
from openrlhf_ext.track.checkpoints import Checkpoint
from openrlhf_ext.track.memory import MemoryLog
from openrlhf_ext.track.metrics import Trackers
from openrlhf_ext.track.progress import StepProgress, console
from openrlhf_ext.track.stop import COME_BACK, say_resumable, stop_on_signal
from openrlhf_ext.trainers.journal import Cadence, Evaluate, Journal
from openrlhf_ext.trainers.local import LocalRole
from openrlhf_ext.trainers.supervised import STATE, SupervisedSettings, train_supervised

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run(command: Command, parsed: Parsed, launch: Launch | None = None) -> int:
    """Train as the config says. Raises UserError before a model is loaded where the input cannot be used."""
    start = time.monotonic()
    device = choose_device(parsed.config.device.type)
    opened = Opened(launch)
    leads = opened.leads
    if not leads:
        console.quiet = True
        logging.disable(logging.WARNING)
    if launch is not None and launch.ranks > launch.per_node:
        check_files_of_ranks(parsed.config, launch)
    store, latest = open_store(parsed.config.ckpt, leads=leads)
    _check_resumable(latest)
    if command == "dpo":
        check_reference(parsed.config, launch)
    task = _task(command, parsed, device, opened, resuming=latest is not None)
    planned = preflight(command, parsed, device, task.data_size())
    parsed, cfg, memory = planned.parsed, planned.parsed.config, memory_log(planned)
    output = Path(cfg.ckpt.output_dir)
    if leads:
        write_config(cfg, cfg.ckpt, planned.plan)
        write_dropped(dropped_file(output), task.dropped)

    split = replace(_split(cfg), unit=task.unit)
    order = StepOrder(
        task.lengths,
        batch_size=cfg.train.batch_size,
        seed=cfg.train.seed,
        window=cfg.train.length_group_steps,
    )
    total = order.steps_per_epoch * cfg.train.max_epochs
    spec = learner_spec(parsed, device, task.model, total, split)
    most = "at most " if cfg.train.stop_when else ""
    console.print(
        f"{task.announcement()}; {most}{total} optimizer steps of {cfg.train.batch_size} on {spec.ranks} "
        f"{device.kind} rank{'s' if spec.ranks > 1 else ''}.",
        soft_wrap=True,
    )
    settings = SupervisedSettings(cfg.train.max_epochs, task.objective, _identity(cfg, task))
    opened.memory = memory
    with shortage_explained(planned, memory, store), open_learner(spec, cfg.ray, opened) as model:
        task.prepare(model)
        with (
            stop_on_signal() as asked,
            _journal(cfg, task, model, memory, store, total, latest, leads, partial(_any, model, asked)) as journal,
        ):

            def to_step(examples: Sequence[Any]) -> OptimizerStep:
                return task.to_step(examples, split, model.ranks)

            steps = train_supervised(settings, order, task.examples, to_step, model, journal, resume=latest)
        if journal.stopped and journal.reached is None:
            say_resumable(steps, total, cfg.ckpt.path)
            return COME_BACK
        model.export(output / "model")
        if cfg.ds.lora.rank or spec.model.adapters:
            model.export_adapters(output / "adapters")
    if leads:
        _leave_result(cfg, steps, time.monotonic() - start, memory, journal.reached)
    return 0


def _check_resumable(latest: Checkpoint | None) -> None:
    if latest is not None and not (latest.path / STATE).is_dir():
        raise ConfigError(
            f"{latest.path} holds a model and no state to go on from, as --ckpt.disable_ds writes it: start anew with "
            "another --ckpt.path, its model as --model.model_name_or_path if you like."
        )


def _task(command: Command, parsed: Parsed, device: Device, opened: Opened, *, resuming: bool) -> Task:
    """Rows are read and tokenized here: what is wrong with them is said before a model is loaded."""
    cfg = parsed.config
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(
        base_path(cfg.model.model_name_or_path),
        fast=not cfg.data.disable_fast_tokenizer,
        chat_template=cfg.data.tokenizer_chat_template,
    )
    if command == "rm":
        return rm_task(cfg, tokenizer)
    answers = held_out_answers(cfg, tokenizer, resuming=resuming, leads=opened.leads)
    if command == "sft":
        return sft_task(cfg, tokenizer, answers)
    return dpo_task(cfg, tokenizer, partial(make_reference, parsed, device, opened), answers)


def _split(cfg: Any) -> SplitSettings:
    budget = cfg.train.max_tokens_per_gpu if cfg.train.dynamic_batch_enable else None
    return split_settings(cfg.train.micro_batch_size, budget, packed=cfg.ds.packing_samples)


def _identity(cfg: Any, task: Task) -> dict[str, int | str]:
    """What the order of the examples depends on."""
    return {
        "examples": len(task.examples),
        "batch_size": cfg.train.batch_size,
        "seed": cfg.train.seed,
        "length_group_steps": cfg.train.length_group_steps,
        "digest": task.digest,
    }


@contextmanager
def _journal(
    cfg: Any,
    task: Task,
    model: SupervisedRole,
    memory: MemoryLog,
    store: Any,
    total: int,
    latest: Any,
    leads: bool,
    stop: Callable[[], bool],
) -> Iterator[Journal]:
    tracker = open_tracking(cfg.logger, cfg.ckpt, cfg, latest.step if latest else None) if leads else Trackers([])
    line = StepProgress(total, task.shown, every=cfg.logger.logging_steps)
    evaluate: Evaluate | None = None
    if task.evaluate is not None:
        evaluate = partial(task.evaluate, model)
    try:
        yield Journal(
            Cadence(cfg.logger.logging_steps, cadence_of(cfg.eval.steps), cadence_of(cfg.ckpt.save_steps)),
            tracker=tracker,
            line=line,
            store=store,
            evaluate=evaluate,
            gauges=memory.take,
            stop=stop,
            until=goal_of(cfg.train.stop_when),
        )
    finally:
        line.close()
        tracker.close()


def _any(model: SupervisedRole, asked: Callable[[], bool]) -> bool:
    """Whether any rank was asked: the ranks of a launcher are told one by one, and end together."""
    return any(model.together(asked())) if isinstance(model, LocalRole) else asked()


def _leave_result(cfg: Any, steps: int, seconds: float, memory: MemoryLog, reached: Reached | None) -> None:
    """Write result.json and say what is in it."""
    output = Path(cfg.ckpt.output_dir)
    result = {
        "steps": steps,
        "seconds": round(seconds, 1),
        "checkpoint": str((output / "model").absolute()),
        "metrics": str(metrics_file(cfg.logger, cfg.ckpt).absolute()),
        **goal_result(cfg.train.stop_when, reached),
        "memory": as_result(memory),
    }
    (output / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    say_peaks(memory)
    console.print(f"model after {steps} steps: {result['checkpoint']}\nmetrics: {result['metrics']}", soft_wrap=True)
