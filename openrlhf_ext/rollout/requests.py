"""What an engine is asked for and what it answers, and its sampling options in vLLM's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openrlhf_ext.errors import ConfigError
from openrlhf_ext.types import FinishReason, Prompt, RolloutKey, Sampling, derive_seed

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}  # vLLM has further ways to give up


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Sample `sample` of a prompt. `sampling.seed` is the step's; the request's own is derived from it."""

    prompt: Prompt
    sample: int
    sampling: Sampling

    @property
    def key(self) -> RolloutKey:
        return RolloutKey(self.prompt.id, self.sample)

    @property
    def seed(self) -> int:
        return derive_seed(self.sampling.seed, self.prompt.id, self.sample)


def requests_for(prompts: Sequence[Prompt], sampling: Sampling) -> list[GenerateRequest]:
    """For every sample of each prompt, those of a prompt in a row."""
    return [GenerateRequest(prompt, sample, sampling) for prompt in prompts for sample in range(sampling.n)]


@dataclass(frozen=True, slots=True)
class SampledTurn:
    """What the policy said when it was asked once. `stop` is the string that ended it, None for anything else.

    `cached` is how many of the tokens before it needed no computing.
    """

    name: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: FinishReason
    stop: str | None
    version: int
    cached: int


def sampling_params(sampling: Sampling) -> SamplingParams:
    """Without a seed and a limit, which are each request's own. Raises ConfigError for what vLLM refuses."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import RequestOutputKind

    try:
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=max(sampling.top_k, 0),
            min_p=sampling.min_p,
            stop=list(sampling.stop),
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            # Text is decoded once at the end; only stop strings need it token by token.
            detokenize=bool(sampling.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    except (ValueError, VLLMValidationError) as error:
        raise ConfigError(f"vLLM refuses these sampling options: {error}") from error


def sampled_turn(output: RequestOutput, version: int) -> SampledTurn:
    """A finished output whose tokens were all sampled with the weights of `version`."""
    sampled: Any = output.outputs[0]
    logprobs: Sequence[float] = sampled.logprobs.logprobs
    assert len(logprobs) == len(sampled.token_ids), "one log-prob for each sampled token"
    return SampledTurn(
        name=output.request_id,
        tokens=tuple(sampled.token_ids),
        logprobs=tuple(logprobs),
        finish=FINISH_REASONS.get(sampled.finish_reason, "abort"),
        stop=sampled.stop_reason if isinstance(sampled.stop_reason, str) else None,
        version=version,
        cached=output.num_cached_tokens or 0,
    )


def tell_progress(done: int, total: int) -> None:
    """How far an engine is; said in its own process, whose output Ray hands on to the user."""
    if done < total:
        print(f"{done} of {total} rollouts", flush=True)
