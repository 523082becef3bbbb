"""A reward model as a source of rewards: from rollouts to the token ids that it reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from openrlhf_ext.batch.pad import Tokens
from openrlhf_ext.data.chat import check_chat_template, render_chat
from openrlhf_ext.rewards.answer import Answer
from openrlhf_ext.rewards.process import RewardBatch
from openrlhf_ext.types import Prompt, Report, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Scorer(Protocol):
    """The model itself, wherever it runs."""

    def scores(self, rows: Sequence[Tokens]) -> list[float]:
        """A number for each row of token ids."""
        ...


class ModelSource:
    """A `RewardSource` over a reward model, which is started later than files and URLs: see `connect`.

    A model with the policy's tokens reads a rollout as it was sampled. For another the conversation is
    rendered and tokenized anew, and ends with its own EOS, once, where the answer ended with the policy's.
    What is longer than `max_tokens` loses its beginning; the log `truncated` has a 1 for each of those.
    """

    signature = "a reward model"

    def __init__(
        self,
        path: str,
        tokenizer: PreTrainedTokenizerBase,
        policy_tokenizer: PreTrainedTokenizerBase | None,
        *,
        max_tokens: int,
        templated: bool,
    ) -> None:
        """`templated` says that prompts were made with a chat template; DataError if `tokenizer` then has none.

        Without the policy's tokenizer, which an endpoint keeps to itself, an answer ended where it was not cut off.
        """
        self.name = "reward_model"
        self.origin = path
        self._tokenizer = tokenizer
        self._ends = frozenset(policy_tokenizer.all_special_ids) if policy_tokenizer is not None else None
        self._same = policy_tokenizer is not None and same_tokens(tokenizer, policy_tokenizer)
        self._max_tokens = max_tokens
        self._told = False
        self._scorer: Scorer | None = None
        if templated and not self._same:
            check_chat_template(tokenizer)

    def connect(self, roles: Any) -> None:
        self._scorer = roles.scorer

    def start(self) -> None:
        """Nothing to start: the model runs among the other roles."""

    def ask(self, batch: RewardBatch, timeout_s: float) -> Answer:
        """The scores of the samples. A model needs as long as it needs, or its process dies (ResourceError)."""
        assert self._scorer is not None, "a model is connected before it is asked"
        rows = self.token_rows(batch.samples)
        too_long = [len(row) > self._max_tokens for row in rows]
        if any(too_long) and not self._told:
            self._told = True
            logger.warning(
                "%d of %d samples are longer than the %d tokens that the reward model %s reads, and lose their "
                "beginning; reward/%s/truncated counts them from here on.",
                sum(too_long), len(rows), self._max_tokens, self.origin, self.name,
            )  # fmt: skip
        scores = self._scorer.scores([row[-self._max_tokens :] for row in rows])
        return Answer(scores, logs={"truncated": [float(cut) for cut in too_long]})

    def token_rows(self, samples: Sequence[tuple[Prompt, Rollout]]) -> list[Tokens]:
        """What the model reads of each sample, at its full length."""
        if self._same:
            return [rollout.token_ids for _, rollout in samples]
        ended = [
            rollout.finish_reason == "stop" and (self._ends is None or rollout.token_ids[-1] in self._ends)
            for _, rollout in samples
        ]
        texts = [self._text(*sample, end) for sample, end in zip(samples, ended, strict=True)]
        tokenized: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        eos = self._tokenizer.eos_token_id
        rows: list[Tokens] = []
        for ids, end in zip(tokenized, ended, strict=True):
            # A text may have no token at all in another vocabulary; a row has at least one.
            rows.append([*ids, eos] if not ids or (end and ids[-1] != eos) else ids)
        return rows

    def _text(self, prompt: Prompt, rollout: Rollout, ended: bool) -> str:
        if not prompt.messages:
            return prompt.text + rollout.text
        where = f"prompt {prompt.id}"
        if not ended:  # an open turn: its template would close it
            asked = render_chat(self._tokenizer, prompt.messages, where, generation_prompt=True)
            return asked + rollout.text
        turns = [*prompt.messages, {"role": "assistant", "content": rollout.text}]
        # Templates put a line break behind the end of a turn, and the score is read at the end.
        return render_chat(self._tokenizer, turns, where, generation_prompt=False).rstrip()

    def take_report(self) -> Report:
        """Nothing beside the retries, which the caller counts."""
        return {}

    def close(self) -> None:
        """Nothing to close: the model ends with the other roles."""


def same_tokens(left: PreTrainedTokenizerBase, right: PreTrainedTokenizerBase) -> bool:
    """Whether token ids of the one mean the same to the other, the ends of a sequence included."""
    ends = [(tokenizer.bos_token_id, tokenizer.eos_token_id) for tokenizer in (left, right)]
    return ends[0] == ends[1] and left.get_vocab() == right.get_vocab()
