"""From the rl command's config to its judge: what it is asked by, and whom it asks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_ext.config import RLConfig
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.rewards.judge.judge import Judge
from openrlhf_ext.rewards.judge.settings import JudgeSettings
from openrlhf_ext.rewards.judge.source import JudgeSource
from openrlhf_ext.types import Prompt

if TYPE_CHECKING:
    from openrlhf_ext.cluster.build import RemoteRoles
    from openrlhf_ext.rewards.judge.endpoint import Endpoint

NO_CACHE = "off"
CACHE_FOLDER = "judge_cache"


@dataclass(frozen=True, slots=True)
class RunJudge:
    """The judge of a run: of the rewards, where it has a rubric, and of reward files that ask it."""

    judge: Judge
    source: JudgeSource | None
    endpoint: Endpoint | None

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises RewardError for a row that lacks what the rubric shows, ConfigError for an endpoint that is not there.

        No model is loaded for it.
        """
        if self.source is not None:
            self.source.check_rows(prompts)
        if self.endpoint is not None:
            self.endpoint.check()

    def connect(self, roles: RemoteRoles) -> None:
        """Meet the engines, once they run."""
        if self.endpoint is None:
            assert roles.judge is not None, "a judge without an endpoint is a role"
            self.judge.connect(roles.judge)


@contextmanager
def checked_judge(run: RunJudge | None, prompts: Sequence[Prompt]) -> Iterator[Judge | None]:
    """The judge that reward files may ask, checked, for the time of the block."""
    if run is None:
        yield None
        return
    try:
        run.check(prompts)
        yield run.judge
    finally:
        if run.endpoint is not None:
            run.endpoint.close()


def run_judge(cfg: RLConfig) -> RunJudge | None:
    """The judge that the flags name, if any. Raises ConfigError for a rubric that is none, DataError for a tokenizer
    that cannot be loaded.
    """
    if not cfg.has_judge:
        return None
    from openrlhf_ext.rewards.judge.cache import VerdictCache
    from openrlhf_ext.rewards.judge.rubric_file import load_rubric

    flags = cfg.judge
    rubric = None if flags.prompt is None else load_rubric(flags.prompt)
    special: Sequence[str] = ()
    if flags.model_name_or_path is not None:
        tokenizer = load_tokenizer(flags.model_name_or_path, fast=not cfg.data.disable_fast_tokenizer)
        special = tokenizer.all_special_tokens
    folder = flags.cache or str(Path(cfg.ckpt.output_dir) / CACHE_FOLDER)
    cache = None if folder == NO_CACHE else VerdictCache(folder)
    judge = Judge(rubric, judge_settings(cfg), cache, special)
    endpoint = None
    if flags.url is not None:
        endpoint = endpoint_of(flags)
        judge.connect(endpoint)
    source = None
    if rubric is not None:
        source = JudgeSource(judge, f"{flags.model_name_or_path or flags.url} with {rubric.origin}", endpoint)
    return RunJudge(judge, source, endpoint)


def judge_settings(cfg: RLConfig) -> JudgeSettings:
    flags = cfg.judge
    return JudgeSettings(
        mode=flags.mode,
        samples=flags.n_samples,
        temperature=flags.temperature,
        max_new_tokens=flags.max_new_tokens,
        max_pairs=flags.max_pairs,
        seed=cfg.train.seed,
    )


def endpoint_of(flags: Any, whose: str = "the judge's") -> Endpoint:
    """By the flags of a model that is an endpoint. Raises ConfigError for a URL that is none."""
    from openrlhf_ext.rewards.judge.endpoint import Endpoint, EndpointSettings

    assert flags.url is not None and flags.served_model_name is not None, "the rules ask for both"
    return Endpoint(
        EndpointSettings(
            url=flags.url,
            model=flags.served_model_name,
            api_key=flags.api_key,
            concurrency=flags.concurrency,
            timeout_s=flags.timeout_s,
            max_retries=flags.max_retries,
            whose=whose,
        )
    )


def name_of_weights(path: str, dtype: str) -> str:
    """A name that changes when the files of a folder do: weights by size and time, what is small by its content."""
    folder = Path(path)
    if not folder.is_dir():
        return f"{path} ({dtype})"
    digest = hashlib.blake2b(dtype.encode(), digest_size=8)
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            stat = file.stat()
            digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        elif file.suffix in (".json", ".jinja", ".txt", ".model"):
            digest.update(file.name.encode() + file.read_bytes())
    return f"{folder.absolute()} ({digest.hexdigest()})"
