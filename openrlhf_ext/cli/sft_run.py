"""One SFT run on one device, in this process: check the data, train, evaluate, export."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.types import OptimizerStep, TokenBatch
from openrlhf_ext.cli.memory_report import as_result, memory_log, say_peaks, shortage_explained
from openrlhf_ext.cli.preflight import preflight
from openrlhf_ext.cli.specs import (
    cadence_of,
    engine_spec,
    metrics_file,
    model_spec,
    open_store,
    open_tracking,
    split_settings,
    write_config,
)
from openrlhf_ext.config import Parsed, SFTConfig
from openrlhf_ext.data.sft import LoadedSft, SftExample, SftSettings, load_sft
from openrlhf_ext.data.tables import parse_probs
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.device import Device, choose_device
from openrlhf_ext.device.peaks import PeakMeter
from openrlhf_ext.device.rendezvous import free_port
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.types import DataSize
from openrlhf_ext.track.memory import MemoryLog
from openrlhf_ext.track.progress import StepProgress, console, waiting
from openrlhf_ext.trainers.journal import Cadence, Journal
from openrlhf_ext.trainers.local import LocalRole
from openrlhf_ext.trainers.supervised import SupervisedSettings, sft_evaluation, sft_step, train_supervised

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = {"train/loss": "loss", "train/grad_norm": "gradient", "train/lr": "lr"}
EVALUATION_ROWS = 64


def run(parsed: Parsed) -> int:
    """Train as the config says. Raises UserError before the model is loaded where the input cannot be used."""
    cfg: SFTConfig = parsed.config
    start = time.monotonic()
    check_ranks(cfg)
    device = choose_device(cfg.device.type)
    store, latest = open_store(cfg.ckpt)
    assert cfg.model.model_name_or_path is not None and cfg.data.dataset is not None
    tokenizer = load_tokenizer(
        cfg.model.model_name_or_path,
        fast=not cfg.data.disable_fast_tokenizer,
        chat_template=cfg.data.tokenizer_chat_template,
    )
    loaded = load_sft(sft_settings(cfg, cfg.data.dataset, cfg.data.dataset_split, cfg.data.dataset_probs), tokenizer)
    held_out = _evaluation_batches(cfg, tokenizer)
    planned = preflight("sft", parsed, device, _data_size(loaded, held_out))
    parsed, cfg, memory = planned.parsed, planned.parsed.config, memory_log(planned)
    settings = SupervisedSettings(cfg.train.seed, cfg.train.batch_size, cfg.train.max_epochs)
    total = settings.total_steps(len(loaded.examples))
    console.print(_announcement(loaded, total, settings, device.kind), soft_wrap=True)

    write_config(cfg, cfg.ckpt)
    split = split_settings(cfg.train.micro_batch_size, None, packed=cfg.ds.packing_samples)

    def to_step(examples: Sequence[SftExample]) -> OptimizerStep:
        return sft_step(token_batch(examples, tokenizer.pad_token_id), split, model.ranks)

    with shortage_explained(planned, memory, store):
        model = _load_model(parsed, device, total, split, memory)
        tracker = open_tracking(cfg.logger, cfg.ckpt, cfg, latest.step if latest else None)
        line = StepProgress(total, SHOWN, every=cfg.logger.logging_steps)
        journal = Journal(
            Cadence(cfg.logger.logging_steps, cadence_of(cfg.eval.steps), cadence_of(cfg.ckpt.save_steps)),
            tracker=tracker,
            line=line,
            store=store,
            evaluate=(lambda: sft_evaluation(model, held_out)) if held_out else None,
            gauges=memory.take,
        )
        try:
            steps = train_supervised(settings, loaded.examples, to_step, model, journal, resume=latest)
        finally:
            line.close()
            tracker.close()
        model.export(Path(cfg.ckpt.output_dir) / "model")
    _leave_result(cfg, steps, time.monotonic() - start, memory)
    return 0


def _leave_result(cfg: SFTConfig, steps: int, seconds: float, memory: MemoryLog) -> None:
    """Write result.json and say what is in it."""
    output = Path(cfg.ckpt.output_dir)
    result = {
        "steps": steps,
        "seconds": round(seconds, 1),
        "checkpoint": str((output / "model").absolute()),
        "metrics": str(metrics_file(cfg.logger, cfg.ckpt).absolute()),
        "memory": as_result(memory),
    }
    (output / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    say_peaks(memory)
    console.print(f"model after {steps} steps: {result['checkpoint']}\nmetrics: {result['metrics']}", soft_wrap=True)


def _data_size(loaded: LoadedSft, held_out: Sequence[TokenBatch]) -> DataSize:
    lengths = [len(example.token_ids) for example in loaded.examples]
    return DataSize(
        rows=len(lengths),
        mean_tokens=sum(lengths) / len(lengths),
        max_tokens=max([*lengths, *(int(batch.lengths_B.max()) for batch in held_out)]),
        eval_rows=sum(batch.rows for batch in held_out) or None,
        how="counted",
    )


def check_ranks(cfg: SFTConfig) -> None:
    """Raises ConfigError where more is asked for than this version does."""
    ranks = cfg.model.num_nodes * cfg.model.num_gpus_per_node
    if ranks > 1:
        raise ConfigError(
            f"--model.num_gpus_per_node x --model.num_nodes asks for {ranks} ranks: sft trains on one device in this "
            "version; leave the flags out."
        )


def sft_settings(cfg: SFTConfig, dataset: str, split: str, probs: str | None) -> SftSettings:
    return SftSettings(
        dataset=dataset,
        probs=parse_probs(probs),
        split=split,
        input_key=cfg.data.input_key,
        output_key=cfg.data.output_key,
        input_template=cfg.data.input_template,
        apply_chat_template=cfg.data.apply_chat_template,
        multiturn=cfg.data.multiturn,
        pretrain=cfg.model.pretrain_mode_enable,
        max_samples=cfg.data.max_samples,
        max_tokens=cfg.data.max_len,
        seed=cfg.train.seed,
    )


def _evaluation_batches(cfg: SFTConfig, tokenizer: PreTrainedTokenizerBase) -> list[TokenBatch]:
    if cfg.eval.dataset is None:
        return []
    examples = load_sft(sft_settings(cfg, cfg.eval.dataset, cfg.eval.split, None), tokenizer).examples
    parts = (examples[start : start + EVALUATION_ROWS] for start in range(0, len(examples), EVALUATION_ROWS))
    return [token_batch(part, tokenizer.pad_token_id) for part in parts]


def _announcement(loaded: LoadedSft, total: int, settings: SupervisedSettings, device: str) -> str:
    left_out = [f"{name}: {count}" for name, count in loaded.counts.items() if name.startswith(("dropped", "trunc"))]
    notes = f" ({', '.join(left_out)})" if left_out else ""
    tokens, learned = loaded.counts["tokens"], loaded.counts["learned_tokens"]
    return (
        f"{len(loaded.examples)} examples{notes} of {tokens} tokens, {learned} of them learned; "
        f"{total} optimizer steps of {settings.batch_size} on this {device}."
    )


def _load_model(parsed: Parsed, device: Device, total_steps: int, split: SplitSettings, memory: MemoryLog) -> LocalRole:
    from openrlhf_ext.engine.deepspeed_engine import DeepSpeedEngine
    from openrlhf_ext.engine.process import init_process

    cfg: SFTConfig = parsed.config
    chosen = "ds.attn_implementation" in parsed.explicit
    assert cfg.model.model_name_or_path is not None
    spec = model_spec(cfg.model.model_name_or_path, cfg.model, cfg.ds, device, explicit=chosen)
    exact = cfg.train.full_determinism_enable
    engine = engine_spec(cfg, cfg.ds, total_steps=max(total_steps, 1), seed=cfg.train.seed, exact=exact)
    phase = memory.measuring("model", PeakMeter(device, "model"))
    with waiting("the model to load"), phase("load"):
        init_process(device, 0, 1, 0, "127.0.0.1", free_port("127.0.0.1"))
        loaded: Any = DeepSpeedEngine(spec, engine, device)
    return LocalRole(loaded, split, phase)
