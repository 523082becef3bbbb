"""From config sections, which every training command shares, to the values that the lower floors take."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.condition import Condition, Reached, parse_condition
from openrlhf_ext.config import dump, write_yaml
from openrlhf_ext.config.sections import CkptSection, DsSection, LoggerSection, OptimizerFields
from openrlhf_ext.device import Device, attention
from openrlhf_ext.engine.deepspeed_config import effective_stage
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.models.spec import LoraSpec, ModelSpec
from openrlhf_ext.plan.calibrate import PLAN_FILE
from openrlhf_ext.plan.describe import as_json
from openrlhf_ext.plan.types import Plan
from openrlhf_ext.track.checkpoints import Checkpoint, CheckpointStore
from openrlhf_ext.track.metrics import Trackers, WandbSettings, open_trackers

logger = logging.getLogger(__name__)
OUTPUT_DIR = "--ckpt.output_dir"


def model_path(name: str) -> str:
    """A local folder by its absolute path (a joined cluster's processes run elsewhere), a hub name as it is."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def model_spec(path: str, model: Any, ds: DsSection, device: Device, *, explicit: bool) -> ModelSpec:
    """`model` is the section with the gradient-checkpointing flags, `explicit` whether attention was chosen."""
    lora = ds.lora
    if ds.load_in_4bit and not device.can("4bit"):
        raise ConfigError("--ds.load_in_4bit needs bitsandbytes, which is not installed: install it, or leave it out.")
    if ds.load_in_8bit and not device.can("8bit"):
        raise ConfigError("--ds.load_in_8bit needs bitsandbytes, which is not installed: install it, or leave it out.")
    return ModelSpec(
        path=model_path(path),
        dtype=ds.param_dtype,
        attn_implementation=attention(device, ds.attn_implementation, explicit=explicit),
        gradient_checkpointing=model.gradient_checkpointing_enable,
        reentrant=model.gradient_checkpointing_reentrant,
        packing=ds.packing_samples,
        logprob_chunk=ds.logprob_chunk_size,
        lora=LoraSpec(lora.rank, lora.alpha, lora.target_modules, lora.dropout) if lora.rank else None,
        load_in_4bit=ds.load_in_4bit,
        load_in_8bit=ds.load_in_8bit,
    )


def engine_spec(optimizer: OptimizerFields, ds: DsSection, *, total_steps: int, seed: int, exact: bool) -> EngineSpec:
    """The engine of a model in training; `exact` asks for deterministic kernels."""
    if optimizer.adam.eight_bit and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("--adam.eight_bit needs bitsandbytes, which is not installed: install it, or leave it out.")
    spec = EngineSpec(
        zero_stage=ds.zero_stage,
        dtype=ds.param_dtype,
        lr=optimizer.adam.lr,
        betas=optimizer.adam.betas,
        eps=optimizer.adam.eps,
        weight_decay=optimizer.adam.weight_decay,
        max_norm=optimizer.max_norm,
        lr_scheduler=optimizer.lr_scheduler,
        warmup_ratio=optimizer.lr_warmup_ratio,
        min_lr_ratio=optimizer.min_lr_ratio,
        total_steps=total_steps,
        eight_bit=optimizer.adam.eight_bit,
        adam_offload=ds.adam_offload,
        overlap_comm=ds.overlap_comm,
        zpg=ds.zpg,
        grad_accum_dtype=ds.grad_accum_dtype,
        seed=seed,
        deterministic=exact,
    )
    if (stage := effective_stage(spec)) != ds.zero_stage:
        logger.warning(
            "--ds.zero_stage %d runs as stage %d: %s.",
            ds.zero_stage,
            stage,
            "gradients are summed in float32 there alone" if stage == 3 else "float32 master weights begin there",
        )
    return spec


def frozen_engine_spec(ds: DsSection, *, offload: bool, seed: int, exact: bool) -> EngineSpec:
    """The engine of a model that only answers: whole, or sharded where the trained one is."""
    return EngineSpec(
        zero_stage=3 if ds.zero_stage == 3 else 0,
        dtype=ds.param_dtype,
        param_offload=offload,
        zpg=ds.zpg,
        seed=seed,
        deterministic=exact,
        trainable=False,
    )


def split_settings(rows: int, max_tokens: int | None, *, packed: bool) -> SplitSettings:
    """Micro-batches of so many rows, or by a budget of tokens where there is one."""
    if max_tokens is not None:
        return SplitSettings(max_tokens=max_tokens, packed=packed)
    return SplitSettings(rows=rows, packed=packed)


def cadence_of(every: int) -> int:
    """-1, 'at the end only', is 0 in the journal's terms."""
    return max(every, 0)


def goal_of(stop_when: str | None) -> Condition | None:
    return None if stop_when is None else parse_condition(stop_when)


def goal_result(stop_when: str | None, reached: Reached | None) -> dict[str, Any]:
    """For result.json: what the run was to go on until, and where it got there (null: it did not)."""
    return {} if stop_when is None else {"stop_when": stop_when, "reached": asdict(reached) if reached else None}


def open_store(ckpt: CkptSection, *, leads: bool = True) -> tuple[CheckpointStore | None, Checkpoint | None]:
    """The checkpoint store (None: nothing is to be written) and what to resume from.

    Raises:
        ConfigError: the folder holds another run's checkpoints and resuming was not asked for; a later
            resume could not tell the two runs apart.
    """
    store = CheckpointStore(Path(ckpt.path), ckpt.max_num, ckpt.max_mem, leads=leads)
    latest = store.latest()
    if latest is not None and not ckpt.load_enable:
        raise ConfigError(
            f"--ckpt.path {ckpt.path} holds checkpoints up to step {latest.step} of an earlier run: give "
            "--ckpt.load_enable to continue it, or another --ckpt.path to start anew."
        )
    return (None if ckpt.disable_ds and not ckpt.save_hf else store), latest


def open_tracking(logger: LoggerSection, ckpt: CkptSection, config: Any, resume_step: int | None) -> Trackers:
    wandb = logger.wandb
    settings = None
    if wandb.key is not None:
        name = wandb.run_name or f"{type(config).__name__.removesuffix('Config').lower()}_{time.strftime('%m%dT%H:%M')}"
        settings = WandbSettings(wandb.key, wandb.project, name, wandb.org, wandb.group)
    return open_trackers(
        metrics_file(logger, ckpt),
        resume_step=resume_step,
        tensorboard=Path(logger.tensorboard_dir) if logger.tensorboard_dir else None,
        wandb=settings,
        config=dump(config),
    )


@contextmanager
def written_below(flag: str, folder: str | Path) -> Iterator[None]:
    """What cannot be written within the block is the flag's fault: ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{flag} {folder} cannot be written to as a folder ({error.strerror}): choose another."
        ) from None


def write_config(config: Any, ckpt: CkptSection, plan: Plan | None) -> None:
    """Write the whole config and the plan (as `plan --json` prints it) beside what the run will leave.

    Raises ConfigError where a folder cannot be written.
    """
    for flag, folder in {OUTPUT_DIR: ckpt.output_dir, "--ckpt.path": ckpt.path}.items():
        with written_below(flag, folder):
            write_yaml(config, Path(folder) / "config.yaml")
    planned = Path(ckpt.output_dir) / PLAN_FILE
    planned.unlink(missing_ok=True)
    if plan is not None:
        planned.write_text(json.dumps(as_json(plan), indent=1) + "\n", encoding="utf-8")


def metrics_file(logger: LoggerSection, ckpt: CkptSection) -> Path:
    return Path(logger.metrics_file) if logger.metrics_file else Path(ckpt.output_dir) / "metrics.jsonl"
