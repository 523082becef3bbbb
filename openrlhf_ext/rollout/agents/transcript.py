"""A talk token by token: it only ever grows, and what the policy was asked with is what it holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from openrlhf_ext.rollout.requests import GenerateRequest, SampledTurn
from openrlhf_ext.types import FinishReason, Outcome, Rollout, ScoreFailure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Transcript:
    """`tokens` of the environment and of the policy in their order; `ends` are the positions of the turns' last."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.actions: list[bool] = []
        self.logprobs: list[float] = []
        self.ends: list[int] = []
        self.versions: list[int] = []
        self.finish: FinishReason = "stop"

    def tell(self, tokens: Iterable[int]) -> None:
        """Tokens of the environment."""
        told = list(tokens)
        self.tokens += told
        self.actions += [False] * len(told)
        self.logprobs += [0.0] * len(told)

    def say(self, turn: SampledTurn, length: int | None = None) -> None:
        """A turn of the policy; its first `length` tokens, where not all of it was kept."""
        tokens = turn.tokens[:length]
        self.tokens += tokens
        self.actions += [True] * len(tokens)
        self.logprobs += turn.logprobs[: len(tokens)]
        self.ends.append(len(self.tokens) - 1)
        self.versions.append(turn.version)
        self.finish = turn.finish if len(tokens) == len(turn.tokens) else "length"

    def rollout(
        self,
        request: GenerateRequest,
        sample: int,
        role: str,
        tokenizer: PreTrainedTokenizerBase,
        outcome: Outcome | ScoreFailure,
        *,
        version: int,
        cut: bool = False,
    ) -> Rollout:
        """Up to the policy's last token. Without any turn it is the prompt, which a failed episode may be.

        `version` is the weights' where nothing was sampled; `cut` says that the episode ended for want of room.
        """
        if not self.ends:
            self = Transcript()
            self.tell(request.prompt.token_ids)
        stop = self.ends[-1] + 1 if self.ends else len(self.tokens)
        first = self.actions.index(True) if self.ends else stop
        versions: Sequence[int] = self.versions or [version]
        return Rollout(
            prompt_id=request.prompt.id,
            sample=sample,
            token_ids=np.array(self.tokens[:stop], np.int32),
            action_mask=np.array(self.actions[:stop], np.bool_),
            logprobs=np.array(self.logprobs[:stop], np.float32),
            text=str(tokenizer.decode(self.tokens[first:stop], skip_special_tokens=True)),
            finish_reason="length" if cut else self.finish,
            versions=(min(versions), max(versions)),
            outcome=outcome,
            role=role,
        )
