"""A vLLM engine in this process: requests in, rollouts out, new weights between two steps.

vLLM is imported when an engine is made, not before: its settings are environment variables that
must stand first (`engine_environment`), and processes that only describe an engine stay light.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openrlhf_ext.device import Device
from openrlhf_ext.device.peaks import Peak, PeakMeter
from openrlhf_ext.errors import DataError
from openrlhf_ext.rollout.agents.player import EpisodePlayer, TurnRequest
from openrlhf_ext.rollout.engine_start import EngineSettings, start_engine
from openrlhf_ext.rollout.requests import (
    FINISH_REASONS,
    GenerateRequest,
    SampledTurn,
    sampled_turn,
    sampling_params,
)
from openrlhf_ext.rollout.transfer import Bucket, Rendezvous
from openrlhf_ext.rollout.turns import Turns
from openrlhf_ext.types import Rollout

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

Progress = Callable[[int, int], None]
"""Called with (rollouts done, rollouts asked for), every PROGRESS_SECONDS and at the end."""

PROGRESS_SECONDS = 10.0
ALL_MEMORY = frozenset({"weights", "kv_cache"})


def engine_environment(device: Device, threads: int = 1) -> dict[str, str]:
    """Variables that an engine's process must have before it imports vLLM.

    `threads` (CPU): 1 while other processes work on the same cores, all of them for an engine alone.
    """
    # In-process: the engine is stepped by its owner, so it can be stopped between two steps.
    shared = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    if device.kind != "cpu":
        return shared | {"VLLM_LOGGING_LEVEL": "WARNING"}
    # Compiling takes minutes of a CPU run and needs a C++ compiler; vLLM's warnings on a CPU are
    # about libraries to preload and features that only a GPU has.
    return shared | {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": str(threads), "VLLM_LOGGING_LEVEL": "ERROR"}


@dataclass(frozen=True, slots=True)
class _Answer:
    """What vLLM made of a request, and the versions of the weights that sampled its first and its last token."""

    output: RequestOutput
    versions: tuple[int, int]


class VllmEngine:
    """One engine with its own step loop; one call at a time.

    Every request has a seed of its own, so its tokens are the same alone, in a subset or in the
    whole batch, and however many engines there are.

    With `settings.partial` there may be two calls at a time, of two threads: one samples, the other
    brings new weights (`begin_update` to `end_update`). Sampling stops for as long as that takes,
    and answers that are under way go on with the new weights: what they have keeps its tokens and
    log-probs, and its keys and values are computed anew.

    Raises ResourceError where the machine cannot run it (OutOfMemory, where memory is what it lacks), DataError where
    the model cannot be used.
    """

    def __init__(self, settings: EngineSettings, device: Device) -> None:
        self.settings = settings
        self._can_sleep = settings.enable_sleep and device.can("sleep")
        self._asleep: frozenset[str] = frozenset()
        self._version = 0
        self._turns = Turns()
        self._begun: dict[str, int] = {}  # requests that an update met under way: the version of their first token
        assert not (settings.partial and self._can_sleep), "an engine that samples while others train never sleeps"
        self._meter = PeakMeter(device, "engines")
        assert not (settings.partial and settings.agent), "episodes are played with the weights of one version"
        self._player: EpisodePlayer | None = None
        if settings.agent is not None:  # its process starts while the model loads
            self._player = EpisodePlayer(settings.agent, settings.model, self, settings.max_model_len)
        with self._meter("load"):
            self._engine = start_engine(settings, device, self._can_sleep)
        self.tokenizer = self._engine.get_tokenizer()
        self._adapters = None
        if settings.adapters is not None:
            from vllm.lora.request import LoRARequest

            self._adapters = LoRARequest("adapters", 1, settings.adapters)

    @property
    def version(self) -> int:
        """The weight version that the next tokens are sampled with; any thread may read it."""
        return self._version

    # --- sampling ---------------------------------------------------------------------------

    def generate(self, requests: Sequence[GenerateRequest], progress: Progress | None = None) -> list[Rollout]:
        """One rollout for each request, in their order.

        An end-of-sequence token or stop string that was sampled is part of the response: its tokens
        are actions, once. `text` is the response's tokens decoded without special tokens, so without
        the end-of-sequence token but with a stop string. Log-probs are of the distribution that was
        sampled from: after temperature, top-p, top-k and min-p.

        Raises DataError where a prompt leaves no room for a single token, ConfigError for sampling
        options that vLLM refuses.
        """
        assert len({request.key for request in requests}) == len(requests), "one sample, one request"
        base = {sampling: sampling_params(sampling) for sampling in {r.sampling for r in requests}}
        params = [self._params_of(request, base[request.sampling]) for request in requests]
        with self._meter("generate"):
            answers = self._run([r.prompt.token_ids for r in requests], params, progress)
        texts = self.tokenizer.batch_decode(
            [answer.output.outputs[0].token_ids for answer in answers], skip_special_tokens=True
        )
        return [_rollout(request, answer, text) for request, answer, text in zip(requests, answers, texts, strict=True)]

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs of given tokens at temperature 1: T - 1 values for T tokens, value t is of token t + 1.

        A sequence is shorter than `max_model_len`: vLLM always samples one token more.
        """
        from vllm import SamplingParams

        # Prefix caching is off for these requests by itself: cached tokens have no logits.
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False)
        answers = self._run(sequences, [params] * len(sequences), None)
        return [_given_logprobs(tokens, answer.output) for tokens, answer in zip(sequences, answers, strict=True)]

    def _params_of(self, request: GenerateRequest, base: SamplingParams) -> SamplingParams:
        prompt, sampling = request.prompt, request.sampling
        total = min(sampling.max_total_tokens or self.settings.max_model_len, self.settings.max_model_len)
        room = min(sampling.max_new_tokens, total - len(prompt.token_ids))
        if room < 1:
            raise DataError(
                f"Prompt {prompt.id} has {len(prompt.token_ids)} tokens and leaves no room for a response within "
                f"{total}: shorten it, or raise the engine's maximum length."
            )
        params = copy.copy(base)
        params.seed, params.max_tokens = request.seed, room
        return params

    def _run(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], progress: Progress | None
    ) -> list[_Answer]:
        """Step until all are finished. All are added before the first step, so batches form the same way every time."""
        assert not self._asleep, "an engine that is asleep samples nothing"
        assert self.settings.partial or not self._turns.updating, "weights that are being replaced sample nothing"
        with self._turns.step():
            assert not self._engine.has_unfinished_requests(), "one batch at a time"
        self._begun.clear()
        finished: dict[str, _Answer] = {}
        told = time.monotonic()
        try:
            with self._turns.step():
                for index, (tokens, request) in enumerate(zip(prompts, params, strict=True)):
                    self._engine.add_request(
                        str(index), {"prompt_token_ids": list(tokens)}, request, lora_request=self._adapters
                    )
            while len(finished) < len(prompts):
                with self._turns.step():
                    finished.update((o.request_id, self._answer(o)) for o in self._engine.step() if o.finished)
                if progress and time.monotonic() - told >= PROGRESS_SECONDS:
                    progress(len(finished), len(prompts))
                    told = time.monotonic()
        except BaseException:
            # The next call must not meet this one's requests.
            with self._turns.step():
                self._engine.abort_request([str(i) for i in range(len(prompts)) if str(i) not in finished])
            raise
        if progress:
            progress(len(prompts), len(prompts))
        return [finished[str(index)] for index in range(len(prompts))]

    def _answer(self, output: RequestOutput) -> _Answer:
        """An output whose last token was sampled just now."""
        return _Answer(output, (self._begun.get(output.request_id, self._version), self._version))

    # --- episodes ---------------------------------------------------------------------------

    def play(self, requests: Sequence[GenerateRequest], progress: Progress | None = None) -> list[Rollout]:
        """One episode for each request, played by the agent of the settings: its rollouts, one for each player who
        spoke (`sample` is episode times players plus the player's place). `Rollout.outcome` says how it went.

        Tokens depend on nothing but the weights, the seed of the request, and what the environment says.
        """
        assert self._player is not None, "an engine that plays episodes was given an agent"
        assert not self._asleep, "an engine that is asleep samples nothing"
        assert len({request.key for request in requests}) == len(requests), "one sample, one episode"
        with self._meter("generate"):
            return self._player.play(requests, progress)

    def add_turn(self, turn: TurnRequest) -> None:
        params = sampling_params(turn.sampling)
        params.seed, params.max_tokens = turn.seed, turn.sampling.max_new_tokens
        self._engine.add_request(turn.name, {"prompt_token_ids": list(turn.tokens)}, params)

    def step_turns(self) -> list[SampledTurn]:
        return [sampled_turn(output, self._version) for output in self._engine.step() if output.finished]

    def drop_turns(self, names: Sequence[str]) -> None:
        self._engine.abort_request(list(names))

    # --- weights ----------------------------------------------------------------------------

    def join(self, rendezvous: Rendezvous) -> None:
        """Meet the trainer for transport `broadcast` (once, before the first update); blocks until all are there."""
        self._call_workers("init_weight_transfer_engine", init_info={"rendezvous": rendezvous})

    def begin_update(self) -> None:
        """Start replacing all weights: no sampling until `end_update`. A step that is under way is waited for.

        Raises RuntimeError, as sampling does, once an update has failed: the weights are then no version's.
        """
        assert "weights" not in self._asleep, "one updates weights that are awake"
        self._turns.begin_update()
        with self._turns.part_of_update():
            self._call_workers("start_weight_update")

    def load_bucket(self, bucket: Bucket) -> None:
        """Load the tensors of one bucket, named as in the Hugging Face folder."""
        with self._turns.part_of_update():
            self._call_workers("update_weights", update_info={"bucket": bucket})

    def end_update(self, version: int) -> None:
        """The weights are complete: sample with them from now on, and forget what was computed with the old ones."""
        with self._turns.part_of_update():
            self._call_workers("finish_weight_update")
            for state in self._engine.output_processor.request_states.values():
                if state.detokenizer.num_output_tokens():
                    self._begun.setdefault(state.external_req_id, self._version)
            # Requests under way keep their tokens and wait to have keys and values computed for all of them.
            assert self._engine.reset_prefix_cache(reset_running_requests=True), "the old weights' keys are in use"
            assert version >= self._version, "versions grow"
            self._version = version
        self._turns.end_update()

    def _call_workers(self, method: str, **kwargs: Any) -> None:
        with self._meter.guard("publish"):
            self._engine.collective_rpc(method, kwargs=kwargs)

    # --- memory -----------------------------------------------------------------------------

    def take_peaks(self) -> dict[str, Peak]:
        """The most memory that this process held, by phase, since the last call.

        An update is not measured: with `partial` it runs beside sampling, and what sleeps counts as held.
        Nor are the GPUs of an engine that has several: its workers are processes of their own.
        """
        return self._meter.take()

    def sleep(self, level: int = 1) -> None:
        """Leave the GPU: level 1 keeps the weights in host memory, level 2 drops them (update them on waking).

        Does nothing on a CPU or where sleep is not enabled. An engine that is half awake comes back as a whole first.
        """
        if self._can_sleep and self._asleep != ALL_MEMORY:
            self.wake(self._asleep)  # vLLM ignores the call while any part is still asleep
            self._engine.sleep(level)
            self._asleep = ALL_MEMORY

    def wake(self, parts: Collection[str] = ALL_MEMORY) -> None:
        """Come back: everything, or only these parts (weights first, the cache once the trainer has left)."""
        if due := self._asleep.intersection(parts):
            self._engine.wake_up(sorted(due))
            self._asleep -= due

    def close(self) -> None:
        """Give back memory and process groups; the engine cannot be used afterwards."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        if self._player is not None:
            self._player.close()
        self._engine.engine_core.shutdown()
        del self._engine
        cleanup_dist_env_and_memory()


def _rollout(request: GenerateRequest, answer: _Answer, text: str) -> Rollout:
    sampled: Any = answer.output.outputs[0]
    return Rollout.of_turn(
        request.prompt.token_ids,
        sampled.token_ids,
        sampled.logprobs.logprobs,
        prompt_id=request.prompt.id,
        sample=request.sample,
        text=text,
        finish_reason=FINISH_REASONS.get(sampled.finish_reason, "abort"),
        versions=answer.versions,
    )


def _given_logprobs(tokens: Sequence[int], output: RequestOutput) -> list[float]:
    """A position has its token and, where that is not the likeliest, possibly others: the token's own comes first."""
    flat: Any = output.prompt_logprobs
    assert len(flat.start_indices) == len(tokens), "one position for each given token"
    assert [flat.token_ids[i] for i in flat.start_indices[1:]] == list(tokens[1:]), "the given token comes first"
    return [flat.logprobs[i] for i in flat.start_indices[1:]]
