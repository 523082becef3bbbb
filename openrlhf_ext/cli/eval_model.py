"""The model that `eval` asks: where it is, what it is called, and how it answers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf_ext.cli.rl_judge import endpoint_of
from openrlhf_ext.cli.specs import model_path
from openrlhf_ext.cli.supervised_model import is_adapter_folder
from openrlhf_ext.config.evaluation import EvalConfig, EvaluatedModelSection, EvalVllmSection
from openrlhf_ext.cores import usable_cores
from openrlhf_ext.data.hub import local_files
from openrlhf_ext.device import Device
from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.answers import Answerer
from openrlhf_ext.evaluation.asked import AskedRow, Said
from openrlhf_ext.models.load import check_model
from openrlhf_ext.rewards.judge.types import LanguageModel, NoReply, Question
from openrlhf_ext.track.checkpoints import CheckpointStore
from openrlhf_ext.track.progress import waiting
from openrlhf_ext.track.reference_cache import model_digest
from openrlhf_ext.types import Sampling, derive_seed

if TYPE_CHECKING:
    from openrlhf_ext.rewards.judge.endpoint import Endpoint
    from openrlhf_ext.rollout.vllm_engine import VllmEngine

Asks = Sequence[tuple[AskedRow, int]]
"""Rows with the numbers of the samples that are wanted of them."""

Progress = Callable[[int, int], None]

TokenPair = tuple[Sequence[int], Sequence[int]]
"""Of a prompt and what follows it."""

REFERENCES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Weights:
    """`path` is a folder or hub name; with `adapters`, a folder of peft's of rank `rank`, it is their base."""

    answerer: Answerer
    path: str
    adapters: str | None = None
    rank: int = 0


def find_weights(flags: EvaluatedModelSection) -> Weights:
    """What `--model.model_name_or_path` means. Raises DataError for what is no model, or not whole."""
    assert flags.model_name_or_path is not None
    name = flags.name or flags.model_name_or_path
    path = model_path(_model_in(flags.model_name_or_path))
    adapters, rank = None, 0
    if is_adapter_folder(path):
        adapters, (path, rank) = path, _base_of(path)
    check_model(path)
    with waiting("the weights to be read, whose digest names the model"):
        base = local_files(path)
        digest = model_digest(base) if Path(path).is_dir() else f"{path}@{base.name}"
        if adapters is not None:
            digest = f"{digest}+{model_digest(Path(adapters))}"
    return Weights(Answerer(name, digest), path, adapters, rank)


def _model_in(name: str) -> str:
    """A folder of a model or of adapters: the one that is named, or the one that a training left in it."""
    folder = Path(name)
    if not folder.is_dir() or _is_model(folder):
        return name
    for inner in (folder / "model", folder / "adapters"):
        if _is_model(inner):
            return str(inner)
    latest = CheckpointStore(folder).latest()
    if latest is not None and _is_model(latest.path / "model"):
        return str(latest.path / "model")
    if latest is not None or (folder / "checkpoint.json").is_file():
        raise DataError(
            f"{name} holds checkpoints to resume from, and no model: train with --ckpt.save_hf, or give the model that "
            "the training left in --ckpt.output_dir."
        )
    raise DataError(
        f"{name} holds no model: give a folder with config.json, adapters with adapter_config.json, or the "
        "--ckpt.output_dir of a training."
    )


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or is_adapter_folder(str(folder))


def _base_of(adapters: str) -> tuple[str, int]:
    from openrlhf_ext.models.lora import read_adapter_folder
    from openrlhf_ext.rollout.engine_start import ADAPTER_RANKS

    base, lora = read_adapter_folder(Path(adapters))
    if lora.rank > ADAPTER_RANKS[-1]:
        raise DataError(
            f"the adapters in {adapters} have rank {lora.rank}, and vLLM takes {ADAPTER_RANKS[-1]} at the most: give "
            "the model with adapters merged, which a training leaves in --ckpt.output_dir/model."
        )
    return model_path(base), lora.rank


class EngineModel:
    """A model in an engine of this process."""

    def __init__(self, engine: VllmEngine, sampling: Sampling) -> None:
        self._engine = engine
        self._sampling = sampling

    def say(self, asks: Asks, progress: Progress) -> list[Said]:
        from openrlhf_ext.rollout.requests import GenerateRequest

        requests = [GenerateRequest(asked.prompt, sample, self._sampling) for asked, sample in asks]
        rollouts = self._engine.generate(requests, progress)
        return [Said(each.text, each.response_length, each.finish_reason) for each in rollouts]

    def reference_logprobs(self, rows: Sequence[TokenPair], progress: Progress) -> list[float]:
        """For each prompt and reference the sum of the reference's log-probs."""
        sums: list[float] = []
        for start in range(0, len(rows), REFERENCES_AT_ONCE):
            part = rows[start : start + REFERENCES_AT_ONCE]
            found = self._engine.logprobs([[*prompt, *reference] for prompt, reference in part])
            sums += [sum(each[len(prompt) - 1 :]) for each, (prompt, _) in zip(found, part, strict=True)]
            progress(len(sums), len(rows))
        return sums


class EndpointModel:
    """A model behind an endpoint, which is sent messages."""

    def __init__(self, endpoint: LanguageModel, sampling: Sampling) -> None:
        self._endpoint = endpoint
        self._sampling = sampling

    def say(self, asks: Asks, progress: Progress) -> list[Said]:
        sampling = self._sampling
        questions = [
            Question(
                asked.prompt.messages, None, sampling.max_new_tokens, sampling.temperature,
                derive_seed(sampling.seed, asked.prompt.id, sample),
            )
            for asked, sample in asks
        ]  # fmt: skip
        replies = self._endpoint.reply(questions)
        progress(len(replies), len(asks))
        return [
            Said("", 0, "abort", f"{each.reason}: {each.detail}")
            if isinstance(each, NoReply)
            else Said(each.text, each.answer_tokens, each.finish_reason)
            for each in replies
        ]


@contextmanager
def merged(weights: Weights) -> Iterator[Weights]:
    """The same model without adapters of its own, for the time of the block: in vLLM (0.29) log-probs of given tokens
    fail with adapters, whose part of the logits it takes for sampled tokens only.
    """
    if weights.adapters is None:
        yield weights
        return
    from openrlhf_ext.models.merge import write_merged_model

    with tempfile.TemporaryDirectory(prefix="openrlhf_ext_merged_") as folder:
        with waiting("the adapters to be merged"):
            write_merged_model(weights.path, Path(weights.adapters), Path(folder) / "model")
        yield replace(weights, path=str(Path(folder) / "model"), adapters=None, rank=0)


@contextmanager
def open_engine(
    weights: Weights, flags: EvalVllmSection, sampling: Sampling, longest: int, device: Device
) -> Iterator[EngineModel]:
    """`longest`: tokens of the longest prompt and answer. Raises as `VllmEngine` does."""
    from openrlhf_ext.rollout.engine_start import EngineSettings
    from openrlhf_ext.rollout.vllm_engine import VllmEngine, engine_environment

    os.environ.update(engine_environment(device, flags.threads or usable_cores()))
    settings = EngineSettings(
        model=weights.path,
        transport=None,
        role="evaluated",
        adapters=weights.adapters,
        adapter_rank=weights.rank,
        max_model_len=longest,
        tensor_parallel_size=flags.tensor_parallel_size,
        gpu_memory_utilization=flags.gpu_memory_utilization,
        enforce_eager=flags.enforce_eager,
        kv_cache_gb=flags.kv_cache_gb,
    )
    with waiting("the model to load"):
        engine = VllmEngine(settings, device)
    try:
        yield EngineModel(engine, sampling)
    finally:
        engine.close()


def evaluated_endpoint(flags: EvaluatedModelSection) -> tuple[Answerer, Endpoint]:
    """Raises ConfigError for an endpoint that does not answer. Its weights are whatever answers by that name."""
    endpoint = endpoint_of(flags, "the model's")
    endpoint.check(schema=False)
    return Answerer(flags.name or endpoint.name, endpoint.name), endpoint


def sampling_of(cfg: EvalConfig) -> Sampling:
    asked = cfg.eval
    return Sampling(
        n=asked.n_samples_per_prompt,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        max_new_tokens=asked.max_new_tokens,
        stop=asked.stop,
        seed=asked.seed,
    )
