"""The one model of a supervised command: its spec, its ranks, and where dpo's reference comes from."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.types import TokenBatch
from openrlhf_ext.cli.launch import Launch
from openrlhf_ext.cli.specs import engine_spec, frozen_engine_spec, model_path, model_spec
from openrlhf_ext.cluster.learner_spec import LearnerSpec
from openrlhf_ext.config import Parsed
from openrlhf_ext.cores import threads_for
from openrlhf_ext.data.hub import local_files
from openrlhf_ext.device import Device
from openrlhf_ext.device.interfaces import meets_over
from openrlhf_ext.device.peaks import PeakMeter
from openrlhf_ext.device.rendezvous import free_port
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.models.build import check_spec
from openrlhf_ext.models.load import has_vision_tower
from openrlhf_ext.plan.setup_supervised import SECOND_MODEL, reference_strategy
from openrlhf_ext.ports import SupervisedRole
from openrlhf_ext.track.checkpoints import CheckpointContent
from openrlhf_ext.track.memory import MemoryLog
from openrlhf_ext.track.progress import console, waiting
from openrlhf_ext.track.reference_cache import ReferenceCache, model_digest
from openrlhf_ext.trainers.local import LocalRole
from openrlhf_ext.trainers.reference import BaseReference, CachedReference, ModelReference, Reference

SAID_EVERY = 10
"""Of so many parts the computing of reference log-probs says when it is through."""


@dataclass(slots=True)
class Opened:
    """What a second model needs to know, when it is opened beside the one in training."""

    launch: Launch | None
    memory: MemoryLog = field(default_factory=MemoryLog)

    @property
    def leads(self) -> bool:
        return self.launch is None or self.launch.rank == 0


def is_adapter_folder(path: str) -> bool:
    return (Path(path) / "adapter_config.json").is_file()


def base_path(path: str) -> str:
    """The model itself, or the one that a folder of adapters belongs to."""
    if not is_adapter_folder(path):
        return path
    from openrlhf_ext.models.lora import read_adapter_folder

    return read_adapter_folder(Path(path), head=True)[0]


def learner_spec(
    parsed: Parsed, device: Device, fields: Mapping[str, Any], total_steps: int, split: SplitSettings
) -> LearnerSpec:
    """Raises UserError for a model that is not there, or flags that its adapters contradict."""
    cfg = parsed.config
    ranks = cfg.model.num_nodes * cfg.model.num_gpus_per_node
    path = cfg.model.model_name_or_path
    chosen = "ds.attn_implementation" in parsed.explicit
    model = replace(model_spec(base_path(path), cfg.model, cfg.ds, device, explicit=chosen), **fields)
    if is_adapter_folder(path):
        model = _continued(parsed, model, path)
    check_spec(model)
    if has_vision_tower(model.path):
        console.print(f"{model.path} also sees: its text tower alone is trained and exported.", soft_wrap=True)
    exact = cfg.train.full_determinism_enable
    engine = engine_spec(cfg, cfg.ds, total_steps=max(total_steps, 1), seed=cfg.train.seed, exact=exact)
    content = CheckpointContent(state=not cfg.ckpt.disable_ds, model=cfg.ckpt.save_hf)
    return LearnerSpec(device, ranks, model, engine, split, threads_for(cfg.model.num_gpus_per_node), content)


def _continued(parsed: Parsed, model: Any, path: str) -> Any:
    from openrlhf_ext.models.lora import read_adapter_folder

    _, lora = read_adapter_folder(Path(path), head=model.kind == "reward")
    for name in ("rank", "alpha", "target_modules"):
        if f"ds.lora.{name}" in parsed.explicit and getattr(parsed.config.ds.lora, name) != getattr(lora, name):
            raise ConfigError(
                f"--ds.lora.{name} contradicts the adapters in {path}, on which training goes on "
                f"({getattr(lora, name)}): leave the flag out."
            )
    return replace(model, lora=lora, adapters=model_path(path))


def check_reference(config: Any, launch: Launch | None) -> None:
    """Raises ConfigError for dpo's reference where it cannot be had; no model is read."""
    strategy, ref = reference_strategy(config), config.ref
    second = strategy in SECOND_MODEL or (strategy == "cached" and ref.model_name_or_path is not None)
    if second and launch is None and config.model.num_nodes * config.model.num_gpus_per_node > 1:
        raise ConfigError(
            f"--ref.strategy {strategy}: a second model needs one rank, or ranks that torchrun or srun started; give "
            "--ref.strategy cached without --ref.model_name_or_path, or base with adapters."
        )


@contextmanager
def open_learner(spec: LearnerSpec, ray: Any, opened: Opened) -> Iterator[SupervisedRole]:
    """The model in this process where that is its one rank, or one of those that a launcher started; else in Ray
    workers that end with the block."""
    if spec.ranks == 1 or opened.launch is not None:
        yield open_here(spec, opened)
        return
    # One rank is one process without Ray.
    from openrlhf_ext.cluster.session import RaySettings, ray_session
    from openrlhf_ext.cluster.supervised import build_learner

    settings = RaySettings(
        address=ray.address,
        bind=ray.bind,
        dashboard=ray.dashboard,
        dashboard_port=ray.dashboard_port,
        cpus=max(spec.ranks, threads_for(1)),
        gpus=spec.device.count,
    )
    with ray_session(settings):
        yield build_learner(spec, opened.memory)


def open_here(spec: LearnerSpec, opened: Opened, role: str = "model") -> LocalRole:
    from openrlhf_ext.engine.deepspeed_engine import DeepSpeedEngine
    from openrlhf_ext.engine.process import init_process

    phase = opened.memory.measuring(role, PeakMeter(spec.device, role))
    at = opened.launch
    with waiting(f"the {role} to load"), phase("load"):
        if at is None:
            init_process(spec.device, 0, 1, 0, "127.0.0.1", free_port("127.0.0.1"))
        else:
            local = at.local_rank % max(spec.device.count, 1)  # a launcher may show each rank its own GPU only
            init_process(spec.device, at.rank, at.ranks, local, at.host, at.port, served=at.served)
            if role == "model" and at.ranks > at.per_node:
                # Said by every rank, in its own log.
                over, here = meets_over(spec.device), socket.gethostname()
                print(f"rank {at.rank} on {here} meets the others at {at.host}:{at.port} over {over}", file=sys.stderr)
        engine: Any = DeepSpeedEngine(spec.model, spec.engine, spec.device)
    return LocalRole(engine, spec.split, phase, spec.content)


def make_reference(
    parsed: Parsed, device: Device, opened: Opened, model: SupervisedRole, batches: Sequence[TokenBatch]
) -> Reference:
    """Where the reference's log-probs come from, said out loud."""
    cfg = parsed.config
    strategy = reference_strategy(cfg)
    console.print(f"reference: {SAID[strategy]}", soft_wrap=True)
    if strategy in ("base", "adapter"):
        return BaseReference(model)
    spec = replace(_reference_spec(parsed, device, strategy), split=replace(_split_of(cfg), unit=1))
    if strategy != "cached":
        return ModelReference(_second(spec, model, opened))
    folder = Path(cfg.ref.cache_dir) if cfg.ref.cache_dir else Path(cfg.ckpt.output_dir) / "reference_logprobs"
    cache = _open_cache(folder, cfg, model)
    asked = model if cfg.ref.model_name_or_path is None else _second(spec, model, opened)
    before = len(cache)
    reference = CachedReference.fill(cache, asked, batches, _Progress(len(batches)))
    done = f"{reference.computed} were computed, {before} were found in {cache.path.parent}"
    console.print(f"reference log-probs: {done}", soft_wrap=True)
    return reference


def _open_cache(folder: Path, cfg: Any, model: SupervisedRole) -> ReferenceCache:
    """All ranks must agree on what is missing: the first one keeps the file, and tells the others what is in it."""
    if isinstance(model, LocalRole) and not model.leads:
        return ReferenceCache(folder, "", kept_elsewhere=model.together(None)[0])
    cache = ReferenceCache(folder, reference_digest(cfg))
    if isinstance(model, LocalRole):
        model.together(cache.known)
    return cache


def reference_digest(cfg: Any) -> str:
    """Of the model that answers, with the adapters that it has from the start."""
    path = cfg.ref.model_name_or_path or cfg.model.model_name_or_path
    base = base_path(path)
    adapters = model_digest(Path(path)) if is_adapter_folder(path) else None
    bits = (cfg.ds.load_in_4bit, cfg.ds.load_in_8bit)
    return model_digest(local_files(base), base, cfg.ds.param_dtype, bits, adapters)


SAID = {
    "base": "the base model under the adapters; no second model, no memory",
    "adapter": "a frozen copy of the adapters that training goes on from; no second model",
    "cached": "log-probs that are computed once before training and kept on disk; no second model",
    "quantised": "a second model in 4 bits, whose log-probs differ a little from the whole one's",
    "offloaded": "a second model, in host memory between uses",
    "model": "a second model",
}


def _split_of(cfg: Any) -> SplitSettings:
    return SplitSettings(rows=2 * cfg.train.micro_batch_size, packed=cfg.ds.packing_samples)


def _reference_spec(parsed: Parsed, device: Device, strategy: str) -> LearnerSpec:
    cfg = parsed.config
    path = cfg.ref.model_name_or_path or cfg.model.model_name_or_path
    chosen = "ds.attn_implementation" in parsed.explicit
    model = model_spec(base_path(path), cfg.model, cfg.ds, device, explicit=chosen)
    model = replace(model, lora=None, load_in_4bit=strategy == "quantised", load_in_8bit=False)
    if is_adapter_folder(path):
        from openrlhf_ext.models.lora import read_adapter_folder

        model = replace(model, lora=read_adapter_folder(Path(path))[1], adapters=model_path(path))
    exact = cfg.train.full_determinism_enable
    engine = frozen_engine_spec(cfg.ds, offload=strategy == "offloaded", seed=cfg.train.seed, exact=exact)
    if strategy == "quantised":
        engine = replace(engine, zero_stage=0)
    return LearnerSpec(device, 1, model, engine, _split_of(cfg), threads_for(1))


def _second(spec: LearnerSpec, model: SupervisedRole, opened: Opened) -> SupervisedRole:
    assert isinstance(model, LocalRole), "see check_reference"
    return open_here(replace(spec, ranks=model.ranks), opened, "reference")


class _Progress:
    """Says a few times how far the reference is."""

    def __init__(self, batches: int) -> None:
        self._every = max(batches // SAID_EVERY, 1)
        self._calls = 0

    def __call__(self, done: int, total: int) -> None:
        self._calls += 1
        if self._calls % self._every == 0 or done == total:
            console.print(f"reference log-probs: {done} of {total} answers")
