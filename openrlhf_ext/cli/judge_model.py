"""The judge of a `judge` command, in this process: an engine of its own, or an endpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openrlhf_ext.cli.rl_judge import endpoint_of, name_of_weights
from openrlhf_ext.cli.specs import model_path
from openrlhf_ext.config.judge_command import CommandJudgeSection, JudgeModelFields
from openrlhf_ext.cores import usable_cores
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.device import Device
from openrlhf_ext.models.load import load_config
from openrlhf_ext.rewards.judge.cache import VerdictCache
from openrlhf_ext.rewards.judge.judge import Judge
from openrlhf_ext.rewards.judge.rubric import Rubric
from openrlhf_ext.rewards.judge.settings import JudgeSettings
from openrlhf_ext.rewards.judge.types import LanguageModel, NoReply, Question, Reply
from openrlhf_ext.track.progress import console, waiting

if TYPE_CHECKING:
    from openrlhf_ext.rollout.judge_engine import JudgeEngine


@dataclass(frozen=True, slots=True)
class OpenJudge:
    """A model that answers, for any number of judges. `special_tokens` are its tokenizer's."""

    model: LanguageModel
    flags: JudgeModelFields
    special_tokens: Sequence[str]
    cache: VerdictCache | None

    def judge(self, rubric: Rubric, settings: JudgeSettings) -> Judge:
        judge = Judge(rubric, settings, self.cache, self.special_tokens)
        judge.connect(self.model)
        return judge


def settings_of(flags: CommandJudgeSection) -> JudgeSettings:
    return JudgeSettings(flags.mode, flags.n_samples, flags.temperature, flags.max_new_tokens)


@contextmanager
def open_judge(flags: JudgeModelFields, device: Device) -> Iterator[OpenJudge]:
    """Raises ConfigError for an endpoint that does not answer, DataError or ResourceError for a model that cannot run,
    before it is loaded where that can be known.
    """
    cache = VerdictCache(flags.cache) if flags.cache else None
    if flags.url is not None:
        endpoint = endpoint_of(flags)
        try:
            endpoint.check()
            yield OpenJudge(endpoint, flags, (), cache)
        finally:
            endpoint.close()
        return
    assert flags.model_name_or_path is not None
    path = model_path(flags.model_name_or_path)
    tokenizer = load_tokenizer(path)
    positions = getattr(load_config(path).get_text_config(), "max_position_embeddings", None) or flags.max_len
    with _engine(flags, path, min(flags.max_len, positions), device) as engine:
        model = EngineModel(name_of_weights(path, "auto"), engine)
        yield OpenJudge(model, flags, tokenizer.all_special_tokens, cache)


class EngineModel:
    """`LanguageModel` over an engine in this process."""

    def __init__(self, name: str, engine: JudgeEngine) -> None:
        self._name = name
        self._engine = engine

    @property
    def name(self) -> str:
        return self._name

    def reply(self, questions: Sequence[Question]) -> list[Reply | NoReply]:
        return self._engine.reply(questions, _say_progress)


@contextmanager
def _engine(flags: JudgeModelFields, path: str, longest: int, device: Device) -> Iterator[JudgeEngine]:
    from openrlhf_ext.rollout.engine_start import EngineSettings
    from openrlhf_ext.rollout.vllm_engine import engine_environment

    os.environ.update(engine_environment(device, flags.threads or usable_cores()))
    from openrlhf_ext.rollout.judge_engine import JudgeEngine

    settings = EngineSettings(
        model=path,
        transport=None,
        role="judge",
        max_model_len=longest,
        tensor_parallel_size=flags.tensor_parallel_size,
        gpu_memory_utilization=flags.gpu_memory_utilization,
        enforce_eager=flags.enforce_eager,
        kv_cache_gb=flags.kv_cache_gb,
    )
    with waiting("the judge to load"):
        engine = JudgeEngine(settings, device)
    try:
        yield engine
    finally:
        engine.close()


def _say_progress(done: int, total: int) -> None:
    console.print(f"{done} of {total} answers of the judge", markup=False)
