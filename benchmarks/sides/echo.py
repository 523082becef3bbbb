"""Workers that say something of the right shape at once, in processes without torch: for `control_plane.py`.

They are asked as the real ones are and read what they are sent; what they answer can be checked by who asked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from openrlhf_ext.batch.packed import PackedRollouts
from openrlhf_ext.cluster import wire
from openrlhf_ext.rollout.requests import GenerateRequest, requests_for
from openrlhf_ext.types import Metric, Prompt, Rollout, Sampling

LOGP = -0.5
"""What an echo finds of every action."""
VOCAB = 150_000


def _as_it_came(array: np.ndarray) -> np.ndarray:
    return array


@dataclass(frozen=True, slots=True)
class Told:
    """A worker's answer, as `device.peaks.Measured` is one; nothing is measured."""

    answer: Any
    peaks: dict[str, Any]


class _Tensor:
    """An array that arrives as a tensor with those who have torch."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __reduce__(self) -> tuple[Any, ...]:
        return _tensor, (self._array,)


def _tensor(array: np.ndarray) -> Any:
    return wire.tensor_of(array)


class EchoRank:
    """One rank, or several in turn."""

    def __init__(self) -> None:
        wire.tensor_of = _as_it_came  # here a tensor stays the array that it travels as
        self._version = -1

    def link(self, engines: Sequence[Any]) -> None:
        self._engines = engines

    def answer(self, listed: Sequence[Any], own: int, temperature: float, adapters: bool) -> Told:
        return Told(_Tensor(np.where(listed[own].block.action_BA, np.float32(LOGP), np.float32(0.0))), {})

    def update(self, listed: Sequence[Sequence[Any]], own: int, objective: wire.Sealed) -> Told:
        """Counts what it was sent to learn from: actions, and the sum of their columns."""
        blocks = [shard.share.block for shard in listed[own]]
        actions = float(sum(np.count_nonzero(block.action_BA) for block in blocks))
        report: dict[str, Metric] = {"actions": Metric(actions, reduction="sum")}
        for name in blocks[0].columns:
            total = sum(float(block.columns[name].sum(dtype=np.float64)) for block in blocks)
            report[f"sum_{name}"] = Metric(total, reduction="sum")
        return Told(report, {})

    def publish(self, version: int) -> Told:
        """There are no weights: the engines are told the version."""
        if version > self._version:
            ray.get([engine.end_update.remote(version) for engine in self._engines])
            self._version = version
        return Told(None, {})

    def heavy(self) -> list[str]:
        """What this process should not have imported."""
        return [name for name in ("torch", "vllm", "deepspeed", "transformers") if name in sys.modules]


class EchoEngine:
    """Answers of `max_new_tokens` tokens each, drawn from the request's seed, with four letters a token for text."""

    _version = 0

    def end_update(self, version: int) -> None:
        self._version = version

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, progress: Any) -> PackedRollouts:
        return PackedRollouts.of([self._rollout(request) for request in requests_for(prompts, sampling)])

    def _rollout(self, request: GenerateRequest) -> Rollout:
        draws = np.random.Generator(np.random.SFC64(request.seed))
        prompt, length = request.prompt.token_ids, request.sampling.max_new_tokens
        tokens = np.concatenate([np.array(prompt, np.int32), draws.integers(3, VOCAB, length, dtype=np.int32)])
        action = np.arange(len(tokens)) >= len(prompt)
        logprobs = np.where(action, -draws.standard_exponential(len(tokens), dtype=np.float32), np.float32(0.0))
        text = draws.integers(97, 123, 4 * length, dtype=np.uint8).tobytes().decode("ascii")
        return Rollout(
            request.prompt.id, request.sample, tokens, action, logprobs, text, "length", (self._version,) * 2
        )

    def take_peaks(self) -> dict[str, Any]:
        return {}

    def heavy(self) -> list[str]:
        return EchoRank.heavy(self)  # type: ignore[arg-type]
