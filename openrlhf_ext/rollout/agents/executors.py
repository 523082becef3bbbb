"""OpenRLHF 0.11.2's contract of agents, implemented here for files that import `openrlhf.utils.agent`.

The same names and signatures, the same keys in what goes in and out, so such a file runs unchanged where OpenRLHF
itself cannot be imported. Two differences, both on purpose: an environment's `__init__` may be a coroutine, as its
documentation shows it, and a turn is no longer than --rollout.max_new_tokens where that is set. No images.
"""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from openrlhf_ext.rollout.agents.contract import EpisodeOver
from openrlhf_ext.rollout.agents.draws import seed_draws
from openrlhf_ext.rollout.agents.talks import as_number

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class SamplingParams:
    """How the next turn is sampled; names and defaults are those of vLLM's class of this name."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    max_tokens: int | None = None
    min_tokens: int = 1
    stop: Sequence[str] | str | None = None
    logprobs: int | None = None
    skip_special_tokens: bool = False
    seed: int | None = None
    extra_args: dict[str, Any] = field(default_factory=dict)


class AgentExecutorBase(ABC):
    @abstractmethod
    async def execute(
        self,
        prompt: str,
        label: Any,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> Mapping[str, Any]:
        """Play one episode: a dict with observation_tokens, action_ranges, reward, scores, truncated, extra_logs."""


class AgentInstanceBase(ABC):
    @abstractmethod
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    async def reset(self, states: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return states

    @abstractmethod
    async def step(self, state_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]: ...


class MultiTurnAgentExecutor(AgentExecutorBase):
    """Turn after turn until the environment is done or no room is left."""

    def __init__(self, agent_instance_cls: type[AgentInstanceBase]) -> None:
        if not issubclass(agent_instance_cls, AgentInstanceBase):
            raise TypeError(f"{agent_instance_cls.__name__} must inherit from AgentInstanceBase")
        self.agent_instance_cls = agent_instance_cls

    async def execute(
        self,
        prompt: str,
        label: Any,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        environment = await _made(self.agent_instance_cls)
        opened = await environment.reset({"observation": prompt, "label": label})
        tokens, text = _opening(opened["observation"], sampling_params, max_length, hf_tokenizer)
        longest = sampling_params.max_tokens
        ranges: list[tuple[int, int]] = []
        rewards: list[float] = []
        logprobs = [0.0] * len(tokens)
        scores: Any = None
        logs: Mapping[str, Any] = {}
        truncated = False
        while (room := max_length - len(tokens)) > 0:
            sampling_params.max_tokens = room if longest is None else min(longest, room)
            try:
                answer = (await llm_engine.generate(tokens, deepcopy(sampling_params))).outputs[0]
            except EpisodeOver:  # it has had --agent.max_turns
                truncated = True
                break
            truncated = answer.finish_reason == "length"
            ranges.append((len(tokens), len(tokens) + len(answer.token_ids)))
            seed_draws(getattr(llm_engine, "episode_seed", 0), len(ranges))
            states = {
                "observation_text": text,
                "action_text": answer.text,
                "label": label,
                "sampling_params": sampling_params,
            }
            said = await environment.step(states)
            rewards.append(as_number(said["rewards"], "'rewards'"))
            scores, logs = said.get("scores", sum(rewards)), said.get("extra_logs") or {}
            feedback = _encoded(hf_tokenizer, said["environment_feedback"])
            text = text + answer.text + said["environment_feedback"]
            tokens = tokens + list(answer.token_ids) + feedback
            logprobs += _given(answer) + [0.0] * len(feedback)
            sampling_params = said.get("sampling_params") or sampling_params
            if said["done"]:
                break
        return {
            "prompt": prompt,
            "label": label,
            "images": images,
            "mm_train_inputs": None,
            "reward": sum(rewards),
            "step_rewards": rewards,
            "scores": 0.0 if scores is None else scores,
            "observation_tokens": tokens,
            "action_ranges": ranges,
            "rollout_log_probs": None if sampling_params.logprobs is None else logprobs,
            "truncated": truncated,
            "extra_logs": logs,
        }


class SingleTurnAgentExecutor(AgentExecutorBase):
    """One answer, whose reward is for --reward.remote_url or a subclass to give."""

    def __init__(self, remote_rm_url: Any = None) -> None:
        if remote_rm_url:
            raise ValueError("give the reward's address as --reward.remote_url, not to SingleTurnAgentExecutor")

    async def execute(
        self,
        prompt: str,
        label: Any,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        tokens, _ = _opening(prompt, sampling_params, max_length, hf_tokenizer)
        answer = (await llm_engine.generate(tokens, deepcopy(sampling_params))).outputs[0]
        return {
            "prompt": prompt,
            "label": label,
            "images": images,
            "mm_train_inputs": None,
            "reward": None,
            "scores": None,
            "observation_tokens": tokens + list(answer.token_ids),
            "action_ranges": [(len(tokens), len(tokens) + len(answer.token_ids))],
            "rollout_log_probs": None if answer.logprobs is None else [0.0] * len(tokens) + _given(answer),
            "truncated": answer.finish_reason == "length",
            "extra_logs": {},
        }


async def _made(kind: type[AgentInstanceBase]) -> AgentInstanceBase:
    """An environment, also where its `__init__` is a coroutine."""
    environment = kind.__new__(kind)
    begun: Any = kind.__init__(environment)
    if inspect.isawaitable(begun):
        await begun
    return environment


def _opening(text: str, sampling_params: Any, max_length: int, hf_tokenizer: Any) -> tuple[list[int], str]:
    """The first observation; as in OpenRLHF its end, where it leaves no room for the answer that was asked for."""
    tokens = _encoded(hf_tokenizer, text)
    room = max_length - (sampling_params.max_tokens or 1)
    if len(tokens) <= room:
        return tokens, text
    logger.warning("a first observation of %d tokens loses its beginning: %d fit", len(tokens), room)
    tokens = tokens[-room:]
    return tokens, hf_tokenizer.decode(tokens, skip_special_tokens=False)


def _encoded(hf_tokenizer: Any, text: str) -> list[int]:
    return list(hf_tokenizer(text=text, add_special_tokens=False)["input_ids"]) if text else []


def _given(answer: Any) -> list[float]:
    if answer.logprobs is None:
        return [0.0] * len(answer.token_ids)
    return [position[token].logprob for token, position in zip(answer.token_ids, answer.logprobs, strict=True)]
