"""The `Generator` port over vLLM engines on Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import ray

from openrlhf_ext.batch.packed import PackedRollouts
from openrlhf_ext.cluster.phases import Phases
from openrlhf_ext.cluster.waits import gather
from openrlhf_ext.rollout.requests import requests_for, tell_progress
from openrlhf_ext.rollout.vllm_engine import Progress, VllmEngine
from openrlhf_ext.track.memory import MemoryLog, Moment
from openrlhf_ext.types import Prompt, Rollout, Sampling

SAMPLING = "sampling"


def engine_actor(partial: bool) -> Any:
    """The Ray class of an engine. With `partial`, generations run in a thread of their own, one at a time, and
    updates of the weights overtake them; without, an update waits in the actor's queue.
    """
    options: dict[str, Any] = {"concurrency_groups": {SAMPLING: 1}}
    return ray.remote(**options)(VllmEngineActor) if partial else ray.remote(VllmEngineActor)


class VllmEngineActor(VllmEngine):
    """An engine that is asked prompt by prompt for all samples, and whose answers are packed for the way."""

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress) -> PackedRollouts:
        return PackedRollouts.of(self.generate(requests_for(prompts, sampling), progress))

    def play_all(self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress) -> PackedRollouts:
        return PackedRollouts.of(self.play(requests_for(prompts, sampling), progress))


class RemoteGenerator:
    """`Generator` over one or more engines (Ray handles of VllmEngine; `partial` as they were made).

    A prompt's samples go to one engine, which computes the prompt once. `generate` may run in a thread
    beside the one that publishes, where nobody has to sleep for the engines: `phases` then does nothing.
    With `plays` a sample is an episode of the engines' agent, and has a rollout for each player who spoke in it.
    """

    def __init__(
        self,
        engines: Sequence[Any],
        phases: Phases,
        partial: bool = False,
        memory: MemoryLog | None = None,
        *,
        plays: bool = False,
    ) -> None:
        self.engines = tuple(engines)
        self._phases = phases
        self._memory = memory or MemoryLog()
        self._thread = SAMPLING if partial else None
        self._plays = plays
        self.version = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        self._phases.enter("generate")
        # Engines need neither labels nor columns; agents do.
        bare = [prompt if self._plays else replace(prompt, label=None, meta={}, messages=()) for prompt in prompts]
        parts = [bare[start :: len(self.engines)] for start in range(len(self.engines))]
        calls = [
            (engine.play_all if self._plays else engine.sample)
            .options(concurrency_group=self._thread)
            .remote(part, sampling, tell_progress)
            for engine, part in zip(self.engines, parts, strict=True)
            if part
        ]
        # Asked for in the same breath: the answers come with the rollouts.
        peaks = [engine.take_peaks.options(concurrency_group=self._thread).remote() for engine in self.engines]
        what = f"{len(prompts) * sampling.n} rollouts of up to {sampling.max_new_tokens} tokens"
        if self._plays:
            what = f"{len(prompts) * sampling.n} episodes"
        answers = gather(calls, what, at=Moment("engines", "generate"))
        for measured in gather(peaks, "the engines' memory"):
            self._memory.note("engines", measured)
        by_prompt: dict[str, list[Rollout]] = {prompt.id: [] for prompt in prompts}
        for rollout in chain.from_iterable(answers):
            by_prompt[rollout.prompt_id].append(rollout)
        return [sorted(by_prompt[prompt.id], key=lambda rollout: rollout.sample) for prompt in prompts]
