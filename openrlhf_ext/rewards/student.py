"""A student as a source of rewards: what a frozen model makes of the policy's explanations (`ops.student_reward`)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.data.chat import check_chat_template, render_chat
from openrlhf_ext.errors import ConfigError, DataError
from openrlhf_ext.ops.student_reward import RewardTerms, student_reward
from openrlhf_ext.ports import LogprobRole
from openrlhf_ext.rewards.answer import Answer
from openrlhf_ext.rewards.model import same_tokens
from openrlhf_ext.rewards.process import RewardBatch
from openrlhf_ext.rewards.spans import TagSpan, TokenBytes, find_between
from openrlhf_ext.rewards.student_record import StudentRecord, open_records
from openrlhf_ext.types import Metric, Prompt, Report, Rollout, RolloutKey

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class StudentSettings:
    """What the student reads, and what its log-probs are worth.

    It reads `prompt` (Jinja, of the row's columns and `question`; None: the question alone, through the chat template
    where `templated`), the explanation between `think_tags`, `solution_prefix`, the solution. In the policy's answer
    the explanation stands between `tags`. `teacher` says whose log-probs of it the policy's are: those it was sampled
    with, or those of a forward pass of the policy.
    """

    question_key: str = "question"
    solution_key: str = "solution"
    label_key: str | None = None  # the column that is the prompt's label
    prompt: str | None = None
    templated: bool = False
    tags: tuple[str, str] = ("<explanation>", "</explanation>")
    think_tags: tuple[str, str] = ("<think>\n", "\n</think>\n\n")
    solution_prefix: str = ""
    temperature: float = 0.7
    terms: RewardTerms = field(default_factory=RewardTerms)
    teacher: Literal["sampler", "policy"] = "sampler"
    from_reference: bool = False
    max_answer_tokens: int = 0
    max_total_tokens: int = 1 << 62  # of prompt and answer together
    debug_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What the student reads of one sample, as a row of a batch; the actions are what it is asked about.

    `teacher_at` are the places, in the rollout, of the explanation's tokens that both read the same.
    """

    key: RolloutKey
    token_ids: tuple[int, ...]
    explanation: range
    solution: range
    teacher_at: tuple[int, ...]
    found: TagSpan

    @property
    def action_mask(self) -> tuple[bool, ...]:
        return tuple(at in self.explanation or at in self.solution for at in range(len(self.token_ids)))

    @property
    def logprobs(self) -> tuple[float, ...]:
        return (0.0,) * len(self.token_ids)


class StudentSource:
    """A `RoleSource`. `connect` takes the roles' `student` (or `reference`), and their `policy` where it is asked."""

    signature = "a student model"

    def __init__(
        self,
        path: str,
        tokenizer: PreTrainedTokenizerBase,
        policy_tokenizer: PreTrainedTokenizerBase,
        settings: StudentSettings,
        *,
        max_tokens: int,
    ) -> None:
        """`max_tokens` is the longest sequence that the student reads.

        Raises DataError where the vocabularies differ, or are of a kind in which tags cannot be found; ConfigError
        for a template that is none.
        """
        if not same_tokens(tokenizer, policy_tokenizer):
            raise DataError(
                f"the student {path} has another vocabulary ({len(tokenizer)} tokens) than the policy "
                f"({len(policy_tokenizer)}), and reads the policy's tokens: give a student with the same tokenizer."
            )
        self.name, self.origin = "student", path
        self._tokenizer = policy_tokenizer
        self._settings, self._max_tokens = settings, max_tokens
        self._bytes = TokenBytes(policy_tokenizer)
        self._ends = frozenset(policy_tokenizer.all_special_ids)
        self._template = None if settings.prompt is None else _compiled(settings.prompt)
        if settings.templated and self._template is None:
            check_chat_template(policy_tokenizer)
        self._records = open_records(settings.debug_dir)
        self._student: LogprobRole | None = None
        self._policy: LogprobRole | None = None
        self._tokens, self._seconds = 0, 0.0

    def connect(self, roles: Any) -> None:
        self._student = roles.reference if self._settings.from_reference else roles.student
        self._policy = roles.policy if self._settings.teacher == "policy" else None
        assert self._student is not None, "a student is among the roles"

    def check(self, prompts: Sequence[Prompt], answers: Sequence[int] = ()) -> None:
        """Raise DataError for a prompt without question or solution, or one whose longest reading does not fit.

        `answers` are the tokens of each one's answer, where they are known already.
        """
        settings = self._settings
        for place, prompt in enumerate(prompts):
            context, between, solution = map(self._ids, self._texts(prompt))
            if not context or not solution:
                empty = "context before the explanation" if solution else "solution"
                raise DataError(
                    f"prompt {prompt.id}: the student's {empty} has no token: mend the row or the template."
                )
            most = min(settings.max_answer_tokens, settings.max_total_tokens - len(prompt.token_ids))
            explanation = answers[place] if answers else most
            longest = len(context) + len(between) + len(solution) + explanation
            if longest > self._max_tokens:
                raise DataError(
                    f"prompt {prompt.id}: question, solution and an explanation of at most "
                    f"{explanation} tokens come to {longest}, and the student {self.origin} reads "
                    f"{self._max_tokens}: lower --rollout.max_new_tokens, or leave the row out."
                )

    def start(self) -> None:
        """Nothing to start: the model runs among the other roles."""

    def ask(self, batch: RewardBatch, timeout_s: float) -> Answer:
        """The rewards of the samples, with every term. A model needs as long as it needs, or its process dies."""
        assert self._student is not None, "a student is connected before it is asked"
        begin = time.monotonic()
        readings = [self.reading(prompt, rollout) for prompt, rollout in batch.samples]
        student_BA = self._student.logprobs(token_batch(readings, self._pad_id), self._settings.temperature)
        teachers = self._teacher_logprobs([rollout for _, rollout in batch.samples], readings)
        records = [
            self._scored(prompt, rollout, reading, student_A, teacher_E)
            for (prompt, rollout), reading, student_A, teacher_E in zip(
                batch.samples, readings, student_BA, teachers, strict=True
            )
        ]
        if self._records is not None:
            self._records.write(records)
        self._tokens += sum(len(reading.token_ids) for reading in readings)
        self._seconds += time.monotonic() - begin
        return Answer([record.reward for record in records], logs=_columns(record.parts for record in records))

    def reading(self, prompt: Prompt, rollout: Rollout) -> Reading:
        """The explanation's tokens as they were sampled, in the student's own context.

        Of a token that holds a part of a tag the rest is tokenized anew: the student reads the whole explanation, and
        nothing of the tags.
        """
        tokens, places = rollout.token_ids.tolist(), rollout.action_mask.nonzero()[0].tolist()
        if places and rollout.finish_reason == "stop" and self._is_end(tokens[places[-1]]):
            places.pop()
        open_tag, close_tag = self._settings.tags
        opened = prompt.text.rstrip().endswith(open_tag.rstrip())
        pieces = [self._bytes.of(tokens[at]) for at in places]
        found = find_between(pieces, open_tag, close_tag, opened=opened)
        shared = places[found.span.whole]
        before, between, solution = self._texts(prompt)
        first = [*self._ids(before), *self._ids(found.span.before)]
        second = [*self._ids(found.span.after), *self._ids(between)]
        answer = self._ids(solution)
        row = [*first, *(tokens[at] for at in shared), *second, *answer]
        return Reading(
            rollout.key,
            tuple(row),
            explanation=range(len(first), len(first) + len(shared)),
            solution=range(len(row) - len(answer), len(row)),
            teacher_at=tuple(shared),
            found=found,
        )

    def take_report(self) -> Report:
        """Tokens that the student read and seconds that it took, since the last call."""
        tokens, seconds = self._tokens, self._seconds
        self._tokens, self._seconds = 0, 0.0
        return {
            f"reward/{self.name}/tokens": Metric(float(tokens), reduction="sum"),
            f"reward/{self.name}/seconds": Metric(seconds, reduction="sum"),
        }

    def close(self) -> None:
        """Nothing to close: the model ends with the other roles."""

    @property
    def _pad_id(self) -> int:
        return int(self._tokenizer.pad_token_id or 0)

    def _is_end(self, token_id: int) -> bool:
        """Whether it ends the turn, and is not itself the end of the closing tag."""
        return token_id in self._ends and not self._settings.tags[1].encode().endswith(self._bytes.of(token_id))

    def _teacher_logprobs(self, rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Tensor]:
        """(E,) of each sample: how likely the policy found the explanation's tokens, given question and solution."""
        if self._policy is None:
            pairs = zip(rollouts, readings, strict=True)
            return [torch.from_numpy(rollout.logprobs[list(reading.teacher_at)]) for rollout, reading in pairs]
        logp_BA = self._policy.logprobs(token_batch(rollouts, self._pad_id), self._settings.temperature)
        places = [torch.tensor(reading.teacher_at, dtype=torch.long) - 1 for reading in readings]
        return [logp_A[at] for logp_A, at in zip(logp_BA, places, strict=True)]

    def _scored(
        self, prompt: Prompt, rollout: Rollout, reading: Reading, student_A: Tensor, teacher_E: Tensor
    ) -> StudentRecord:
        # Position a of the answer speaks of token a + 1.
        solution_S = student_A[reading.solution.start - 1 : reading.solution.stop - 1]
        student_E = student_A[reading.explanation.start - 1 : reading.explanation.stop - 1]
        matched = reading.found.matched
        reward, parts = student_reward(solution_S, teacher_E, student_E, matched=matched, terms=self._settings.terms)
        tokens = rollout.token_ids[list(reading.teacher_at)].tolist()
        span = reading.found.span
        explanation = span.before + self._bytes.joined(tokens).decode(errors="replace") + span.after
        return StudentRecord(
            prompt_id=prompt.id,
            sample=rollout.sample,
            version=rollout.versions[1],
            prompt=prompt.text,
            explanation=explanation,
            student_tokens=list(reading.token_ids),
            explanation_start=reading.explanation.start,
            solution_start=reading.solution.start,
            reward=reward,
            parts={**parts, "explanation_tokens": float(len(tokens))},
            teacher_logp=teacher_E.tolist(),
            student_logp=student_E.tolist(),
            solution_logp=solution_S.tolist(),
        )

    def _texts(self, prompt: Prompt) -> tuple[str, str, str]:
        """What stands before the explanation, between it and the solution, and the solution."""
        settings = self._settings
        question, solution = (self._column(prompt, key) for key in (settings.question_key, settings.solution_key))
        before = self._context(prompt, question) + settings.think_tags[0]
        return before, settings.think_tags[1] + settings.solution_prefix, solution

    def _context(self, prompt: Prompt, question: str) -> str:
        if self._template is not None:
            return _rendered(self._template, {**prompt.meta, "question": question}, prompt.id)
        if self._settings.templated:
            messages = [{"role": "user", "content": question}]
            return render_chat(self._tokenizer, messages, f"prompt {prompt.id}", generation_prompt=True)
        return question + "\n"

    def _column(self, prompt: Prompt, key: str) -> str:
        value = prompt.label if key == self._settings.label_key else prompt.meta.get(key)
        if not isinstance(value, str) or not value:
            raise DataError(
                f"prompt {prompt.id} has no text in its column {key!r}, which the student reads: name the columns of "
                "question and solution by --student.question_key and --student.solution_key."
            )
        return value

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _columns(rows: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns


def _compiled(text: str) -> Any:
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    try:
        return SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)
    except TemplateError as error:
        raise ConfigError(f"--student.prompt is no Jinja template ({error}): mend it.") from None


def _rendered(template: Any, columns: Mapping[str, Any], prompt_id: str) -> str:
    from jinja2 import TemplateError

    try:
        return str(template.render(columns))
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise DataError(
            f"--student.prompt cannot be rendered for prompt {prompt_id} ({error}); its columns are "
            f"{', '.join(columns)}: mend the template or the row."
        ) from None
