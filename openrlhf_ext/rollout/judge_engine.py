"""A vLLM engine in this process that answers questions: a judge's, whose weights never change.

As with `VllmEngine`, vLLM is imported when an engine is made, after `engine_environment`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from openrlhf_ext.data.chat import render_chat
from openrlhf_ext.device import Device
from openrlhf_ext.device.peaks import Peak, PeakMeter
from openrlhf_ext.rewards.judge.types import NoReply, Question, Reply
from openrlhf_ext.rollout.engine_start import EngineSettings, start_engine
from openrlhf_ext.rollout.vllm_engine import FINISH_REASONS, PROGRESS_SECONDS, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm import SamplingParams

LONGEST_DETAIL = 300


class JudgeEngine:
    """One engine with its own step loop; one call at a time.

    The same question gets the same answer alone or among others: each has its own seed, and a batch is
    complete before its first step. Raises as `VllmEngine` does.
    """

    def __init__(self, settings: EngineSettings, device: Device) -> None:
        assert settings.role == "judge" and settings.transport is None, "a judge keeps its weights"
        self.settings = settings
        self._can_sleep = settings.enable_sleep and device.can("sleep")
        self._asleep = False
        self._meter = PeakMeter(device, "judge")
        with self._meter("load"):
            self._engine = start_engine(settings, device, self._can_sleep)
        self._tokenizer = self._engine.get_tokenizer()
        self._prompts = PromptTokens(self._tokenizer)

    def reply(self, questions: Sequence[Question], progress: Progress | None = None) -> list[Reply | NoReply]:
        """An answer to each question, or why there is none, in their order.

        `too_long`: question and longest answer together exceed `max_model_len`. `refused`: vLLM does not take the
        schema or the sampling options. `Reply.text` is decoded without special tokens.
        """
        assert not self._asleep, "an engine that is asleep answers nothing"
        with self._meter("score"):
            return self._reply(questions, progress)

    def _reply(self, questions: Sequence[Question], progress: Progress | None) -> list[Reply | NoReply]:
        answers: dict[int, Reply | NoReply] = {}
        asked: set[str] = set()
        try:
            for index, question in enumerate(questions):
                refusal = self._add(str(index), question)
                if refusal is None:
                    asked.add(str(index))
                else:
                    answers[index] = refusal
            told = time.monotonic()
            while asked:
                for output in self._engine.step():
                    if output.finished:
                        asked.remove(output.request_id)
                        answers[int(output.request_id)] = self._read(output)
                if progress and time.monotonic() - told >= PROGRESS_SECONDS:
                    progress(len(answers), len(questions))
                    told = time.monotonic()
        except BaseException:
            self._engine.abort_request(list(asked))  # the next call must not meet this one's requests
            raise
        return [answers[index] for index in range(len(questions))]

    def _add(self, request: str, question: Question) -> NoReply | None:
        """Hand a question to vLLM; why not, where it cannot be."""
        tokens = self._prompts.of(question.messages)
        longest = self.settings.max_model_len
        if len(tokens) + question.max_new_tokens > longest:
            detail = f"{len(tokens)} tokens and an answer of {question.max_new_tokens} are more than {longest}"
            return NoReply("too_long", detail)
        from vllm.exceptions import VLLMValidationError

        try:
            self._engine.add_request(request, {"prompt_token_ids": tokens}, _sampling_params(question))
        except (ValueError, VLLMValidationError) as error:
            return NoReply("refused", str(error)[:LONGEST_DETAIL])
        return None

    def _read(self, output: Any) -> Reply:
        sampled = output.outputs[0]
        text = self._tokenizer.decode(list(sampled.token_ids), skip_special_tokens=True)
        reason = FINISH_REASONS.get(sampled.finish_reason, "abort")
        return Reply(text, reason, len(output.prompt_token_ids), len(sampled.token_ids))

    # --- memory -----------------------------------------------------------------------------

    def take_peaks(self) -> dict[str, Peak]:
        """The most memory that this process held, by phase, since the last call (one GPU's, as of VllmEngine)."""
        return self._meter.take()

    def sleep(self) -> None:
        """Leave the GPU, the weights to host memory. Does nothing on a CPU or where sleep is not enabled."""
        if self._can_sleep and not self._asleep:
            self._engine.sleep(1)
            self._asleep = True

    def wake(self) -> None:
        if self._asleep:
            self._engine.wake_up()
            self._asleep = False

    def close(self) -> None:
        """Give back memory and process groups; the engine cannot be used afterwards."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._engine.engine_core.shutdown()
        del self._engine
        cleanup_dist_env_and_memory()


class PromptTokens:
    """From messages to token ids, by the tokenizer's chat template; plain text where it has none.

    A special token that is written in a message stays text: only the template's own act.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def of(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of a conversation whose answer comes next."""
        written = [token for message in messages for token in self._special.findall(message["content"])]
        if not written:
            return self._tokens(self._rendered(messages), whole=True)
        # What looks like a special token is put aside while the rest is rendered and tokenized as ever.
        key = _unused([message["content"] for message in messages])
        aside = iter(range(len(written)))
        hidden = [
            {**m, "content": self._special.sub(lambda _: f"{key}{next(aside)}{key}", m["content"])} for m in messages
        ]
        pieces = re.split(f"{key}(\\d+){key}", self._rendered(hidden))
        tokens = self._tokens(pieces[0], whole=True)
        for number, text in zip(pieces[1::2], pieces[2::2], strict=True):
            tokens += self._as_text(written[int(number)]) + self._tokens(text, whole=False)
        return tokens

    def _rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        if not self._tokenizer.chat_template:
            return "\n\n".join(message["content"] for message in messages)
        return render_chat(self._tokenizer, messages, "the judge's question", generation_prompt=True)

    def _tokens(self, text: str, *, whole: bool) -> list[int]:
        """`whole`: what a plain text begins with (BOS) is added; a template writes its own."""
        if not text:
            return []
        added = whole and not self._tokenizer.chat_template
        ids: list[int] = self._tokenizer(text, add_special_tokens=added)["input_ids"]
        return ids

    def _as_text(self, token: str) -> list[int]:
        """The characters of a special token, as ordinary tokens."""
        return [number for char in token for number in self._tokens(char, whole=False)]

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Any special token of the tokenizer, as it is written; nothing, where there is none."""
        added = self._tokenizer.added_tokens_decoder.values()
        names = {*self._tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        # A token of one character cannot be taken apart; the longest first, for some begin as others do.
        long = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, long)) if long else r"(?!)")


def _unused(texts: Sequence[str]) -> str:
    """A mark that stands in none of the texts, of characters that templates and tokenizers give no meaning to."""
    mark = "\ue000"
    while any(mark in text for text in texts):
        mark += "\ue001"
    return mark + "\ue002"


def _sampling_params(question: Question) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    schema = question.schema
    return SamplingParams(
        temperature=question.temperature,
        seed=question.seed,
        max_tokens=question.max_new_tokens,
        structured_outputs=None if schema is None else StructuredOutputsParams(json=dict(schema)),
        detokenize=False,  # decoded once, at the end
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
