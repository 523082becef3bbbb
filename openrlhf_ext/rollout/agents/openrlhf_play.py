"""OpenRLHF's contract in the agent's process: what an executor gets for an engine, and what becomes of its episode."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf_ext.rollout.agents.calls import EPISODE, Calls
from openrlhf_ext.rollout.agents.executors import SamplingParams
from openrlhf_ext.rollout.agents.talks import WrongType, as_number, require_turn

TAKEN_FROM_PARAMS = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "skip_special_tokens")
NOT_TAKEN = {
    "min_tokens": 1, "frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "stop_token_ids": None,
    "bad_words": None, "logit_bias": None,
}  # fmt: skip
"""With the values under which they change nothing."""


@dataclass(frozen=True, slots=True)
class Logprob:
    logprob: float


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """A turn, as vLLM gives it: `text` without what ended it, `token_ids` with it."""

    token_ids: list[int]
    text: str
    finish_reason: str
    logprobs: list[dict[int, Logprob]] | None
    index: int = 0


@dataclass(frozen=True, slots=True)
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


class EngineHandle:
    """`llm_engine` of all executors, in any thread and any event loop of this process."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._seeds: dict[int, int] = {}

    def begin(self, episode: int, seed: int) -> None:
        EPISODE.set(episode)
        self._seeds[episode] = seed

    def end(self, episode: int) -> None:
        self._seeds.pop(episode, None)

    @property
    def episode_seed(self) -> int:
        return self._seeds.get(EPISODE.get() or 0, 0)  # episodes count from 1

    async def generate(
        self, prompt_token_ids: Sequence[int], sampling_params: Any, multi_modal_data: Any = None
    ) -> RequestOutput:
        """Raises EpisodeOver where no token or no turn is left, ValueError for what cannot be sampled."""
        if multi_modal_data is not None:
            raise ValueError("an engine that plays episodes takes no images")
        tokens = [int(token) for token in prompt_token_ids]
        for name, usual in NOT_TAKEN.items():
            if (value := getattr(sampling_params, name, usual)) and value != usual:
                raise ValueError(f"sampling_params.{name}={value!r} is not taken here: leave it out")
        sampling = {name: getattr(sampling_params, name, None) for name in TAKEN_FROM_PARAMS}
        stop = getattr(sampling_params, "stop", None) or []
        sampling["stop"] = [stop] if isinstance(stop, str) else list(stop)
        wants = getattr(sampling_params, "logprobs", None) is not None
        message = {"kind": "generate", "episode": EPISODE.get(), "tokens": tokens, "sampling": sampling}
        reply = await self._calls.ask({**message, "logprobs": wants})
        require_turn(reply)
        found, logprobs = reply["tokens"], None
        if wants:
            logprobs = [{token: Logprob(value)} for token, value in zip(found, reply["logprobs"], strict=True)]
        return RequestOutput(tokens, [CompletionOutput(found, reply["text"], reply["finish"], logprobs)])


async def play(
    executor: Any, task: Mapping[str, Any], limits: Mapping[str, Any], tokenizer: Any, engine: EngineHandle
) -> dict[str, Any]:
    """Play one episode; what the engine is told of it."""
    given = {
        "prompt": task["prompt"],
        "label": task["label"],
        "sampling_params": SamplingParams(**limits["sampling"]),
        "max_length": limits["max_length"],
        "hf_tokenizer": tokenizer,
        "llm_engine": engine,
        "images": None,
    }
    taken = inspect.signature(executor.execute).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        given = {name: value for name, value in given.items() if name in taken}  # `images` is newer than some files
    return _result(await executor.execute(**given))


def _result(found: Any) -> dict[str, Any]:
    if not isinstance(found, Mapping) or not {"observation_tokens", "action_ranges"} <= found.keys():
        kind = f"a dict with {', '.join(map(str, found))}" if isinstance(found, Mapping) else type(found).__name__
        raise WrongType(f"execute returned {kind}; expected a dict with observation_tokens and action_ranges")
    reward, scores = found.get("reward"), found.get("scores")
    ranges = [(int(start), int(end)) for start, end in found["action_ranges"]]
    result: dict[str, Any] = {
        "kind": "done",
        "tokens": [int(token) for token in found["observation_tokens"]],
        "ranges": ranges,
        "reward": None if reward is None else as_number(reward, "'reward'"),
        "scores": None if scores is None else as_number(scores, "'scores'"),
        "step_rewards": [as_number(each, "a step's reward") for each in found.get("step_rewards", ())],
        "logs": {str(name): _log(value, name) for name, value in (found.get("extra_logs") or {}).items()},
        "truncated": bool(found.get("truncated", False)),
    }
    numbers = [result["reward"], result["scores"], *result["step_rewards"]]
    if not all(math.isfinite(number) for number in numbers if number is not None):
        return {"kind": "failed", "reason": "not_finite", "detail": f"a reward or score is not finite: {numbers}"}
    return result


def _log(value: Any, name: Any) -> float:
    """A tensor of several numbers gives its first, as in OpenRLHF."""
    return as_number(value.flatten()[0] if hasattr(value, "flatten") else value, f"extra_logs[{name!r}]")
